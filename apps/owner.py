"""The owner's page: a study's progress, its raters, and its answers as files, for whoever has the token."""

import functools
import json
import os
import secrets
import tempfile
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jinja2
from fastapi import Cookie, FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from markupsafe import Markup

from apps.dashboard_page import style
from apps.dashboard_plots import Line, line_chart
from apps.owner_stats import Study, study
from apps.owner_token import Owner
from apps.rate_login import is_https
from apps.throttle import Throttle, address_of, in_words
from mmrlhf.datasets.export import ExportConfig, ExportFormat, export
from mmrlhf.errors import UserError
from mmrlhf.page import number, percent
from mmrlhf.store import Kind, Store
from mmrlhf.store.checks import check_results, flagged, repeat_results

COOKIE = "mmrlhf_owner"
COOKIE_SECONDS = 12 * 3600
FRESH_SECONDS = 2.0  # how long one look at the store serves all who ask, or ten times what it took
MOST_RATERS = 500  # in the table
# format of `mmrlhf data export` -> the kinds of answers that it holds
EXPORTS: dict[ExportFormat, tuple[Kind, ...]] = {
    "pairs": ("pair", "rank"),
    "outcomes": ("pair", "score", "likert", "rank"),
    "segments": ("segments",),
    "points": ("point",),
}
WORDS = {
    "pair": "pairs", "score": "ratings", "likert": "ratings by criteria", "rank": "rankings", "segments": "marked answers",
    "point": "points",
}  # fmt: skip
HEADERS = {
    "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
}  # fmt: skip


class Look(NamedTuple):
    """A look at the store, with more columns of the raters' table, when it was taken, and how long it took."""

    study: Study
    columns: list[tuple[str, dict[str, str]]]
    taken: float
    seconds: float


class Watch:
    """The newest look at the store, shared by all who ask."""

    def __init__(self, store: Store, overlap: int) -> None:
        self.store, self.overlap = store, overlap
        self.lock = threading.Lock()
        self.last: Look | None = None

    def look(self) -> Look:
        """What is there now, or was a moment ago."""
        with self.lock:
            began = time.monotonic()
            if self.last is None or began - self.last.taken >= max(FRESH_SECONDS, 10 * self.last.seconds):
                found = study(self.store, self.overlap)
                columns = quality(self.store, found)
                taken = time.monotonic()
                self.last = Look(found, columns, taken, taken - began)
            return self.last


def quality(store: Store, found: Study) -> list[tuple[str, dict[str, str]]]:
    """(title, rater -> what is said) of checks, repeats, a bias for a side, and answers that came too fast; of what there is."""
    lefts = {
        rater: f"{100 * own.share:.0f} %{'' if own.low <= 0.5 <= own.high else ' !'}"
        for rater, own in found.lefts.items()
    }
    columns = [("checks", check_results(store)), ("repeats", repeat_results(store))]
    shares = [(title, {rater: f"{good} of {asked}" for rater, (good, asked) in own.items()}) for title, own in columns]
    fast = {rater: str(count) for rater, count in flagged(store, "too_fast").items()}
    return [(title, column) for title, column in (*shares, ("left", lefts), ("too fast", fast)) if column]


def add_owner_page(app: FastAPI, store: Store, overlap: int, owner: Owner) -> None:
    """The routes below /owner; each asks for the cookie that the token gives."""
    watch, throttle = Watch(store, overlap), Throttle(5, 900.0)

    def refusal(cookie: str) -> Response | None:
        return (
            None if owner.is_cookie(cookie) else told("Open the link that `mmrlhf rate` printed when it started.", 401)
        )

    @app.get("/owner")
    def page(
        request: Request, token: Annotated[str | None, Query()] = None, mmrlhf_owner: Annotated[str, Cookie()] = ""
    ) -> Response:
        if token is not None:
            return admit(owner, throttle, token, request)
        return refusal(mmrlhf_owner) or whole_page(watch.look(), store.name)

    @app.get("/owner/part")
    def part(mmrlhf_owner: Annotated[str, Cookie()] = "") -> Response:
        return refusal(mmrlhf_owner) or HTMLResponse(body(watch.look()), headers=HEADERS)

    @app.get("/owner/export/{name}")
    def download(name: str, mmrlhf_owner: Annotated[str, Cookie()] = "") -> Response:
        if no := refusal(mmrlhf_owner):
            return no
        if name not in EXPORTS:
            return told(f"There is no such file; there are {', '.join(EXPORTS)}.", 404)
        return exported(store, name)


def admit(owner: Owner, throttle: Throttle, token: str, request: Request) -> Response:
    """Swap a right token for a cookie, and lead to the page without it in the address."""
    address = address_of(request)
    if wait := throttle.count(address):
        answer = told(f"Too many attempts. Please try again in {in_words(wait)}.", 429)
        answer.headers["Retry-After"] = str(int(wait) + 1)
        return answer
    if not owner.is_token(token):
        return told("This token is wrong. Open the link that `mmrlhf rate` printed when it started.", 401)
    throttle.forget(address)
    answer = RedirectResponse("owner", 303, headers=HEADERS)
    # lax: the link may be opened from a mail, and no route of the owner's changes anything
    answer.set_cookie(
        COOKIE, owner.cookie(), max_age=COOKIE_SECONDS, secure=is_https(request), httponly=True, samesite="lax"
    )
    return answer


def told(words: str, status: int) -> Response:
    """A page with nothing but a sentence."""
    html = environment().get_template("owner_page.html").module.note(words, Markup(style()))  # type: ignore[attr-defined]
    return HTMLResponse(html, status, headers=HEADERS | {"Content-Security-Policy": policy("")})


def whole_page(look: Look, name: str) -> Response:
    """The page, whose body looks again every few seconds."""
    nonce = secrets.token_urlsafe(16)
    page = environment().get_template("owner_page.html").module.page  # type: ignore[attr-defined]
    html = page(name, Markup(style()), nonce, Markup(body(look)))
    return HTMLResponse(html, headers=HEADERS | {"Content-Security-Policy": policy(nonce)})


def policy(nonce: str) -> str:
    """What the page may load: itself."""
    scripts = f"; script-src 'nonce-{nonce}'; connect-src 'self'" if nonce else ""
    return f"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'{scripts}"


def body(look: Look) -> str:
    """Everything that changes, as HTML in which every text is escaped."""
    found = look.study
    part = environment().get_template("owner_page.html").module.body  # type: ignore[attr-defined]
    there = {row.kind for row in found.kinds if row.answers}
    return part(
        found, look.columns, found.raters[:MOST_RATERS], WORDS, chart(found.times),
        [name for name, kinds in EXPORTS.items() if there & set(kinds)],
    )  # fmt: skip


def chart(times: list[float]) -> Markup:
    """How many answers there were, over time."""
    if not times:
        return Markup("")
    span = times[-1] - times[0]
    unit, name = (3600.0, "hours") if span > 2 * 3600 else (60.0, "minutes") if span > 120 else (1.0, "seconds")
    line = Line("answers", 1, [(moment - times[0]) / unit for moment in times], list(range(1, len(times) + 1)))
    return line_chart("answers over time", [line], f"{name} since {clock(times[0])}")


def exported(store: Store, name: Any) -> Response:
    """The current answers, as `mmrlhf data export` writes them, with whole paths of the pictures: as a download."""
    url = store.engine.url.render_as_string(hide_password=False)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        out = folder / f"{name}.jsonl"
        try:
            export(ExportConfig(out, url, format=name, on_fault="skip"), say=lambda _: None)
        except UserError as error:
            return told(f"{error}.", 409)
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n") if line]
    lines = [json.dumps(absolute(row, folder), ensure_ascii=False) for row in rows]
    headers = HEADERS | {"Content-Disposition": f'attachment; filename="{name}.jsonl"'}
    return Response(
        "".join(line + "\n" for line in lines), media_type="application/jsonl; charset=utf-8", headers=headers
    )


def absolute(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A line whose pictures are named from the root: the file will lie elsewhere."""

    def whole(path: str) -> str:
        return os.path.normpath(folder / path)

    named = {key: whole(row[key]) for key in ("image", "image_0", "image_1") if row.get(key)}
    return row | named | ({"images": [whole(path) for path in row["images"]]} if "images" in row else {})


def clock(moment: float) -> str:
    """A moment as people read it."""
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def ago(moment: float | None, now: float) -> str:
    """How long ago something was."""
    if moment is None:
        return "–"
    seconds = max(0.0, now - moment)
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{int(seconds // unit)}\N{NO-BREAK SPACE}{name} ago"
    return "now"


@functools.cache
def environment() -> jinja2.Environment:
    """Templates in which every value is escaped, and a name that is not there is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"percent": percent, "number": number, "clock": clock, "ago": ago}
    return made
