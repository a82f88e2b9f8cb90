"""What the raters' browsers talk to: one Gradio page with the rating card, and the JSON routes beside it.

The server knows a rater by the cookie that it signed, a picture by its content hash, and everything else by the store: a
reload, a second tab or a restart goes on where the rater was. Only registered pictures are served, never a path.
"""

import base64
import binascii
import hmac
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import gradio
from fastapi import Cookie, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from apps.rate_answers import Vote, said, save, shown
from apps.rate_items import KINDS, Mode, media_type
from mmrlhf.errors import UserError
from mmrlhf.images import content_hash
from mmrlhf.store import Kind, Store, Task

COOKIE = "mmrlhf_rater"
COOKIE_SECONDS = 30 * 24 * 3600
SCRIPTS = ("choices", "segments", "points")  # what the card knows of its modes, read before rate_card.js itself
# Gradio's own ways to put files on this machine or take them from it: the card needs none
CLOSED = ("/gradio_api/upload", "/gradio_api/file", "/gradio_api/proxy", "/gradio_api/stream", "/file", "/upload")

AnswerNumber = Annotated[int, Query(ge=0, lt=2**63)]  # as many as SQLite can count


class Login(BaseModel):
    """What the first page sends."""

    name: str = Field(max_length=200)


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

    @property
    def kind(self) -> Kind:
        """What the store calls the questions."""
        return KINDS[self.mode]

    def state(self, annotator: str | None) -> dict[str, Any]:
        """Everything that a rater's page shows."""
        common = {"name": annotator, "mode": self.mode, "instructions": self.instructions}
        if annotator is None:
            return common
        tasks = self.store.next_tasks(annotator, self.overlap, kind=self.kind)
        progress = self.store.progress(annotator, self.overlap, kind=self.kind)
        answered = progress.voted + progress.skipped
        return {
            **common,
            "tasks": [self.question(task, annotator) for task in tasks],
            "answered": answered,
            "total": answered + progress.open,
            "finished": not tasks and not self.store.waiting(self.overlap, kind=self.kind),
            "more_to_come": self.more_to_come,
        }

    def question(self, task: Task, annotator: str) -> dict[str, Any]:
        """A task as its page shows it."""
        images = [f"images/{key}" for key in shown(task, annotator)]
        asked = {"text": task.text, "criteria": task.criteria, "tags": self.tags if self.mode == "points" else ()}
        return {"task": task.key, "prompt": task.prompt, "images": images, **asked}

    def record(self, vote: Vote, annotator: str) -> None:
        """Put a choice into the store; returns after the commit."""
        task = self.store.task(vote.task)
        if task is None or task.kind != self.kind:
            raise HTTPException(404, "This question is no longer asked.")
        save(self.store, self.mode, task, vote, annotator)

    def earlier(self, annotator: str, before: int | None) -> dict[str, Any] | None:
        """The rater's answer before the one numbered `before` (their last one without), as its page shows it."""
        answers = self.store.answers(annotator, before, kind=self.kind)
        if not answers:
            return None
        return {**self.question(answers[0].task, annotator), **said(answers[0], annotator)}


def clean_name(name: str, allowed: Sequence[str]) -> str:
    """The rater's name, or a 422 that says what is wrong with it."""
    name = " ".join(unicodedata.normalize("NFC", name).split())
    if not 1 <= len(name) <= 60 or not name.isprintable():
        raise HTTPException(422, "Please give a name of 1 to 60 letters.")
    if name.casefold().startswith(("simulated", "ai-")):
        raise HTTPException(422, "Names that start with “simulated” or “ai-” are kept for raters that are not people.")
    if allowed and name not in allowed:
        raise HTTPException(422, "This name is not on the list. Spell it as you were told, or ask who invited you.")
    return name


def sign(name: str, secret: bytes) -> str:
    """The cookie that proves a rater's name."""
    proof = hmac.new(secret, name.encode(), "sha256").hexdigest()
    return f"{base64.urlsafe_b64encode(name.encode()).decode().rstrip('=')}.{proof}"


def verify(cookie: str, secret: bytes) -> str | None:
    """The name in a cookie that we signed, else None."""
    encoded = cookie.partition(".")[0]
    try:
        name = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    except (binascii.Error, ValueError):
        return None
    return name if hmac.compare_digest(sign(name, secret).encode(), cookie.encode()) else None


def read_image(store: Store, key: str) -> Response:
    """The bytes of a registered picture, if they still are what was registered."""
    item = store.item(key)
    try:
        data = b"" if item is None else Path(item.path).read_bytes()
    except OSError:
        data = b""
    kind = media_type(data)
    if item is None or kind is None or content_hash(data) != item.hash:
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
) -> FastAPI:
    """The whole app; its routes come before Gradio's, which is mounted last."""
    desk = Desk(store, mode, overlap, tuple(annotator_names), instructions, more_to_come, tuple(tags))
    secret = store.secret()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_refusals(app)

    def rater(mmrlhf_rater: Annotated[str, Cookie()] = "") -> str | None:
        name = verify(mmrlhf_rater, secret)
        return None if name is None or (annotator_names and name not in annotator_names) else name

    def known_rater(name: Annotated[str | None, Depends(rater)]) -> str:
        if name is None:
            raise HTTPException(401, "Please give your name first.")
        return name

    @app.get("/images/{key}")
    def image(key: str, _name: Annotated[str, Depends(known_rater)]) -> Response:
        return read_image(store, key)

    @app.get("/api/state")
    def state(name: Annotated[str | None, Depends(rater)]) -> dict[str, Any]:
        return desk.state(name)

    @app.post("/api/login")
    def login(login: Login, response: Response) -> dict[str, Any]:
        name = clean_name(login.name, annotator_names)
        response.set_cookie(COOKIE, sign(name, secret), max_age=COOKIE_SECONDS, httponly=True, samesite="strict")
        return desk.state(name)

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
        head=f"<style>{css}</style>",
        footer_links=[],
        run_history=False,
        max_file_size=1,
        show_error=False,
    )
