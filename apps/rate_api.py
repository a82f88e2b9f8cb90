"""What the raters' browsers talk to: one Gradio page with the rating card, and the JSON routes beside it.

The server knows a rater by the cookie that it signed, a picture by its content hash, and everything else by the store: a
reload, a second tab or a restart goes on where the rater was. Only registered pictures are served, never a path.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import gradio
from fastapi import Cookie, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from apps.owner import add_owner_page
from apps.owner_token import Owner
from apps.rate_answers import Vote, said, save, shown
from apps.rate_checks import NO_CHECKS, Checks, turn_of
from apps.rate_clock import NO_LIMITS, Clock
from apps.rate_examples import Example
from apps.rate_items import KINDS, Mode, media_type
from apps.rate_limits import BodyLimit
from apps.rate_login import COOKIE, Door, Login
from mmrlhf.errors import UserError
from mmrlhf.images import content_hash
from mmrlhf.store import Kind, Store, Task
from mmrlhf.store.accounts import Access

# the card's parts, read before rate_card.js itself
SCRIPTS = ("choices", "drag", "segments", "points", "drafts", "clock", "pace", "examples")
# Gradio's own ways to put files on this machine or take them from it: the card needs none
CLOSED = ("/gradio_api/upload", "/gradio_api/file", "/gradio_api/proxy", "/gradio_api/stream", "/file", "/upload")

AnswerNumber = Annotated[int, Query(ge=0, lt=2**63)]  # as many as SQLite can count


@dataclass(frozen=True)
class Desk:
    """The rules of one rating app over a store."""

    store: Store
    mode: Mode
    overlap: int
    annotator_names: tuple[str, ...]
    instructions: str
    more_to_come: bool
    tags: tuple[str, ...]
    access: Access = "names"
    checks: Checks = NO_CHECKS
    clock: Clock = NO_LIMITS
    examples: tuple[Example, ...] = ()

    @property
    def kind(self) -> Kind:
        """What the store calls the questions."""
        return KINDS[self.mode]

    def state(self, annotator: str | None) -> dict[str, Any]:
        """Everything that a rater's page shows."""
        common: dict[str, Any] = {"name": annotator, "mode": self.mode, "instructions": self.instructions}
        if self.access == "accounts":
            common["password"] = True
        if annotator is None:
            return common
        if self.examples:
            common["examples"] = [
                {"image": f"images/{each.key}", "caption": each.caption, "better": each.better}
                for each in self.examples
            ]
        turn = turn_of(self.store, self.checks, annotator, self.overlap, self.kind)
        over = turn.stopped or (not turn.tasks and not self.store.waiting(self.overlap, kind=self.kind))
        return {
            **common,
            **self.clock.for_page(),
            "tasks": [self.question(task, annotator) for task in turn.tasks],
            "answered": turn.answered,
            "total": turn.total,
            "finished": over,
            "more_to_come": self.more_to_come and not turn.stopped,
        }

    def question(self, task: Task, annotator: str) -> dict[str, Any]:
        """A task as its page shows it."""
        images = [f"images/{key}" for key in shown(task, annotator)]
        asked = {"text": task.text, "criteria": task.criteria, "tags": self.tags if self.mode == "points" else ()}
        return {"task": task.key, "prompt": task.prompt, "images": images, **asked}

    def record(self, vote: Vote, annotator: str) -> None:
        """Put a choice into the store; returns after the commit."""
        task = self.store.task(vote.task)
        if task is None or (task.kind != self.kind and (task.kind, self.kind) != ("repeat", "pair")):
            raise HTTPException(404, "This question is no longer asked.")
        save(self.store, self.mode, task, vote, annotator, self.clock)

    def earlier(self, annotator: str, before: int | None) -> dict[str, Any] | None:
        """The rater's answer before the one numbered `before` (their last one without), as its page shows it."""
        answers = self.store.answers(annotator, before, kind=self.kind)
        if not answers:
            return None
        return {**self.question(answers[0].task, annotator), **said(answers[0], annotator)}


def read_image(store: Store, key: str, examples: Sequence[Example] = ()) -> Response:
    """The bytes of a registered picture or of an example, if they still are what they were."""
    item = store.item(key)
    path = item.path if item is not None else next((each.path for each in examples if each.key == key), None)
    try:
        data = b"" if path is None else Path(path).read_bytes()
    except OSError:
        data = b""
    kind = media_type(data)
    if kind is None or content_hash(data) != key:
        raise HTTPException(404, "This picture is missing, or its file has changed.")
    headers = {"Cache-Control": "private, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    return Response(data, media_type=kind, headers=headers)


def build_app(
    store: Store,
    *,
    mode: Mode,
    overlap: int,
    annotator_names: Sequence[str],
    instructions: str,
    more_to_come: bool = False,
    tags: Sequence[str] = (),
    access: Access = "names",
    owner: Owner | None = None,
    checks: Checks = NO_CHECKS,
    clock: Clock = NO_LIMITS,
    examples: Sequence[Example] = (),
) -> FastAPI:
    """The whole app; its routes come before Gradio's, which is mounted last."""
    desk = Desk(
        store, mode, overlap, tuple(annotator_names), instructions, more_to_come, tuple(tags), access, checks, clock,
        tuple(examples),
    )  # fmt: skip
    door = Door(store, access, tuple(annotator_names), store.secret())
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BodyLimit)
    add_refusals(app)

    def rater(mmrlhf_rater: Annotated[str, Cookie()] = "") -> str | None:
        return door.rater(mmrlhf_rater)

    def known_rater(name: Annotated[str | None, Depends(rater)]) -> str:
        if name is None:
            raise HTTPException(401, "Please give your name first.")
        return name

    @app.get("/images/{key}")
    def image(key: str, _name: Annotated[str, Depends(known_rater)]) -> Response:
        return read_image(store, key, desk.examples)

    @app.get("/api/state")
    def state(name: Annotated[str | None, Depends(rater)]) -> dict[str, Any]:
        return desk.state(name)

    @app.post("/api/login")
    def login(login: Login, request: Request, response: Response) -> dict[str, Any]:
        known = door.admit(login, request)
        door.remember(known, request, response)
        return desk.state(known.name)

    @app.post("/api/logout")
    def logout(response: Response) -> dict[str, Any]:
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return desk.state(None)

    @app.post("/api/vote")
    def vote(vote: Vote, name: Annotated[str, Depends(known_rater)]) -> dict[str, Any]:
        desk.record(vote, name)
        return desk.state(name)

    @app.get("/api/back")
    def back(name: Annotated[str, Depends(known_rater)], before: AnswerNumber | None = None) -> dict[str, Any]:
        return {"question": desk.earlier(name, before)}

    if owner is not None:
        add_owner_page(app, store, overlap, owner)
    return mount_card(app)


def add_refusals(app: FastAPI) -> None:
    """What the app answers to a request that it does not carry out, in words for raters."""

    @app.exception_handler(UserError)
    def store_trouble(_request: Request, error: Exception) -> JSONResponse:
        print(f"mmrlhf rate: {error}", file=sys.stderr, flush=True)  # for who runs the app, not for raters
        return JSONResponse({"detail": "The answer could not be saved."}, status_code=503)

    @app.exception_handler(RequestValidationError)
    def not_understood(_request: Request, _error: Exception) -> JSONResponse:
        # FastAPI's own answer repeats what came, which fails where that is no valid Unicode
        return JSONResponse({"detail": "The server did not understand this."}, status_code=422)

    @app.middleware("http")
    async def close_gradio_files(request: Request, call_next: Any) -> Any:
        if request.url.path.startswith(CLOSED):
            return JSONResponse({"detail": "Not Found"}, status_code=404)
        return await call_next(request)


def mount_card(app: FastAPI) -> FastAPI:
    """The Gradio page: one HTML card, with its style in the page's head."""
    folder = Path(__file__).parent
    html, css = ((folder / f"rate_card.{kind}").read_text("utf-8") for kind in ("html", "css"))
    names = [*(f"rate_card_{name}.js" for name in SCRIPTS), "rate_card.js"]
    script = "\n".join((folder / name).read_text("utf-8") for name in names)
    fonts = ["ui-sans-serif", "system-ui", "sans-serif"]  # no web fonts: it works offline
    with gradio.Blocks(
        title="mmrlhf · rate", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)
    ) as page:
        gradio.HTML(html_template=html, js_on_load=script, apply_default_css=False)
    return gradio.mount_gradio_app(
        app,
        page,
        path="/",
        theme=gradio.themes.Base(font=fonts, font_mono=["ui-monospace", "monospace"]),
        head=f'<meta name="referrer" content="no-referrer"><style>{css}</style>',  # a link's token goes nowhere else
        footer_links=[],
        run_history=False,
        max_file_size=1,
        show_error=False,
    )
