"""The live dashboard: one Gradio page that looks at the files again and again, and the pictures beside it."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from markupsafe import Markup

from apps import dashboard_page
from apps.dashboard_charts import other_figures, shown_at_first
from apps.dashboard_files import is_inside, name_below
from apps.dashboard_runs import Board, Run, read_board
from apps.rate_items import media_type

SHOWN = 8  # runs, where nobody chose any: the latest
FRESH_SECONDS = 1.0  # how long one look at the files serves all who ask
# Gradio's own ways to put files on this machine or take them from it: the page needs none
CLOSED = ("/gradio_api/upload", "/gradio_api/file", "/gradio_api/proxy", "/gradio_api/stream", "/file", "/upload")
HEAD = """<style>
{style}
@media (max-width: 640px) {{ .main.app {{ padding: 16px 10px 40px !important; }} }}
.html-container {{ padding: 0 !important; }}
.block:has(> .html-container):not(:has(.mm-dash)) {{ display: none; }}
.mm-dash {{ color-scheme: light; }}
.dark .mm-dash {{ color-scheme: dark; }}
</style>"""


class Watch:
    """The newest look at the folders, shared by all pages."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots, self.lock = tuple(roots), threading.Lock()
        self.looked, self.last = time.monotonic(), read_board(roots)

    def board(self) -> Board:
        """What is there now, at most a second old."""
        with self.lock:
            if time.monotonic() - self.looked >= FRESH_SECONDS:
                self.last, self.looked = read_board(self.roots), time.monotonic()
            return self.last


def build_app(roots: Sequence[Path], *, smooth: float, refresh: float) -> FastAPI:
    """The whole app; its routes come before Gradio's, which is mounted last."""
    watch = Watch(roots)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def close_gradio_files(request: Request, call_next: Any) -> Any:
        if request.url.path.startswith(CLOSED):
            return JSONResponse({"detail": "Not Found"}, status_code=404)
        return await call_next(request)

    @app.get("/pictures/{key}")
    def picture(key: str) -> Response:
        return read_picture(watch.board(), key)

    return gradio.mount_gradio_app(
        app,
        build_page(watch, smooth, refresh),
        path="/",
        theme=gradio.themes.Base(  # no web fonts: it works offline
            font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        head=HEAD.format(style=dashboard_page.style()),
        footer_links=[],
        run_history=False,
        max_file_size=1,
        show_error=False,
    )


def read_picture(board: Board, key: str) -> Response:
    """The bytes of a run's picture; 404 for anything else, and for a link that leads out of the folders since."""
    path = board.pictures.get(key)
    try:
        data = path.read_bytes() if path is not None and is_inside(path, board.roots) else b""
    except OSError:
        data = b""
    kind = media_type(data)
    if kind is None:
        raise HTTPException(404, "This picture is missing.")
    headers = {"Cache-Control": "private, max-age=60", "X-Content-Type-Options": "nosniff"}
    return Response(data, media_type=kind, headers=headers)


def build_page(watch: Watch, smooth: float, refresh: float) -> Any:
    """The controls, the parts that they change, and the timer that looks again."""
    board = watch.board()
    title = "Runs in " + ", ".join(name_below(root, root) for root in board.roots)
    with gradio.Blocks(
        title="mmrlhf · dashboard", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)
    ) as page:
        card('<h1 style="font-size: 25px; font-weight: 600; margin: 0">{}</h1>', title)
        overview = card("")
        with gradio.Row():
            chosen = gradio.Dropdown(names(board), multiselect=True, label=f"Runs (none: the latest {SHOWN})")
            more = gradio.Dropdown(other_figures(board.runs), multiselect=True, label="More figures")
            smoothing = gradio.Slider(0, 0.99, smooth, step=0.01, label="Smoothing")
            live = gradio.Checkbox(True, label=f"Look again every {refresh:g} seconds")
        charts = card("")
        step = gradio.Slider(0, 1, 1, step=1, label="Pictures up to step", visible=False)
        pictures, reports, settings = card(""), card(""), card("")
        timer, seen = gradio.Timer(refresh), gradio.State({})
        parts = [overview, charts, pictures, reports, settings, chosen, more, step]

        def look(picked: Any, figures: Any, weight: Any, up_to: Any, known: dict[str, Any]) -> list[Any]:
            return show(watch.board(), picked, figures, weight, up_to, known)

        given: dict[str, Any] = {"inputs": [chosen, more, smoothing, step, seen], "outputs": [*parts, seen],
                                 "show_progress": "hidden", "api_visibility": "private"}  # fmt: skip
        for event in (page.load, timer.tick, chosen.change, more.change, smoothing.release, step.change):
            event(look, **given)
        live.change(
            lambda on: gradio.Timer(active=bool(on)), live, timer, show_progress="hidden", api_visibility="private"
        )
    return page


def card(template: str, *values: str) -> Any:
    """A piece of HTML in the page's style."""
    return gradio.HTML(framed(Markup(template).format(*values)), apply_default_css=False)


def framed(html: str) -> str:
    """HTML inside of what the style sheet is for."""
    return f'<div class="mm-dash">{html}</div>' if html else ""


def show(board: Board, picked: Any, figures: Any, weight: Any, up_to: Any, known: dict[str, Any]) -> list[Any]:
    """New values for the page's parts, those that have not changed left alone, and what is known now.

    What comes from the browser is not trusted: names that no run has are passed over, numbers are brought into their range.
    """
    runs = runs_of(board, picked)
    others = other_figures(board.runs)
    more = [name for name in others if isinstance(figures, list) and name in figures] or shown_at_first(runs)
    smooth = min(max(float(weight), 0.0), 0.99) if isinstance(weight, int | float) else 0.0
    last = last_step(runs)
    before = known.get("last", last)
    moved = bool(known) and isinstance(up_to, int | float) and up_to < before  # else it stays at the newest
    shown = [
        dashboard_page.overview(board, runs, time.time()),
        dashboard_page.charts(runs, more, smooth),
        dashboard_page.pictures(runs, float(up_to) if moved else float(last)),
        dashboard_page.reports(board, runs),
        dashboard_page.settings(runs),
    ]
    new: dict[str, Any] = {
        **{str(place): framed(str(html)) for place, html in enumerate(shown)},
        "names": names(board), "others": others, "last": last,
    }  # fmt: skip
    changes: list[Any] = [new[str(i)] if new[str(i)] != known.get(str(i)) else gradio.skip() for i in range(len(shown))]
    changes.append(gradio.skip() if new["names"] == known.get("names") else gradio.Dropdown(choices=new["names"]))
    changes.append(gradio.skip() if others == known.get("others") else gradio.Dropdown(choices=others))
    slider = {"maximum": max(last, 1), "visible": last >= 0} | ({} if moved else {"value": max(last, 0)})
    changes.append(gradio.skip() if last == known.get("last") else gradio.Slider(**slider))
    return [*changes, new]


def runs_of(board: Board, picked: Any) -> list[Run]:
    """The runs of these names, or those that were written to last."""
    found = [run for run in board.runs if isinstance(picked, list) and run.name in picked]
    if found:
        return found
    latest = sorted(board.runs, key=lambda run: -run.changed)[:SHOWN]
    return [run for run in board.runs if run in latest]


def names(board: Board) -> list[str]:
    """The names of all runs."""
    return [run.name for run in board.runs]


def last_step(runs: Sequence[Run]) -> int:
    """The newest step that there is a picture of, -1 where there is none."""
    return max((picture.step for run in runs for picture in run.pictures), default=-1)
