"""The routes of `mmrlhf reward serve`: /score, /health, /metrics, /docs, and flow_grpo's where it is switched on."""

import asyncio
import base64
import contextlib
import hmac
import math
import pickle
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmrlhf import __version__
from mmrlhf.errors import UserError
from mmrlhf.rewards.serving.batching import RewardError
from mmrlhf.rewards.serving.bodies import Items, Limits, TooLarge, limited, read_flow_grpo, read_form, read_json
from mmrlhf.rewards.serving.metrics import CONTENT_TYPE, Metrics
from mmrlhf.rewards.serving.openapi import DESCRIPTION, REFUSALS, SCORE_BODY, Health, Scores
from mmrlhf.rewards.serving.scorer import Scorer
from mmrlhf.types import Reward

FLOW_GRPO_PATHS = ("/", "/flow-grpo")
PATHS = ("/score", "/health", "/metrics", "/docs", "/openapi.json", *FLOW_GRPO_PATHS)
PICKLE_PROTOCOL = 4  # what every Python 3 reads
CLIENT_CLOSED = 499  # nginx's number for it; nobody is there to read the answer


def build_app(
    reward: Reward,
    name: str,
    *,
    limits: Limits,
    token: str = "",
    max_batch: int = 64,
    max_wait: float = 0.005,
    flow_grpo: bool = False,
) -> FastAPI:
    """The app that serves a loaded reward; without a token, to anybody. Its lifespan ends the thread that scores."""
    metrics = Metrics()
    scorer = Scorer(reward, limits, max_batch=max_batch, max_wait=max_wait, observe=metrics.batch)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(scorer.batcher.close)

    async def guard(request: Request) -> None:
        check_token(request, token)

    guarded = [Depends(HTTPBearer(auto_error=False)), Depends(guard)] if token else []
    app = FastAPI(
        title=f"mmrlhf reward: {name}", description=DESCRIPTION, version=__version__, lifespan=lifespan, redoc_url=None
    )

    @app.post("/score", dependencies=guarded, openapi_extra=SCORE_BODY, responses=REFUSALS, summary="Score images")
    async def score(request: Request) -> Scores:
        scores = await scorer.score(await read_items(request, limits))
        return Scores(scores=[None if math.isnan(value) else value for value in scores])

    @app.get("/health", summary="Whether the server scores, and with what")
    async def health(response: Response) -> Health:
        ready = scorer.batcher.thread.is_alive()
        response.status_code = 200 if ready else 503
        return Health(ready=ready, reward=name, version=__version__)

    @app.get("/metrics", dependencies=guarded, response_class=PlainTextResponse, summary="Counts for Prometheus")
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    if flow_grpo:
        add_flow_grpo(app, scorer, token)
    add_refusals(app, FLOW_GRPO_PATHS if flow_grpo else ())
    app.add_middleware(Counted, metrics=metrics)
    return app


async def read_items(request: Request, limits: Limits) -> Items:
    """The items of a /score request, JSON or form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = limited(request, limits.request_bytes)
    if kind == "multipart/form-data":
        return await read_form(body, limits)
    if kind == "application/json":
        return await asyncio.to_thread(read_json, await body.body(), limits)
    raise HTTPException(
        415, f"the Content-Type is '{kind[:60]}', allowed are application/json and multipart/form-data: set the header"
    )


def add_flow_grpo(app: FastAPI, scorer: Scorer, token: str) -> None:
    """The protocol of flow_grpo and verl-omni: pickles of plain containers, both ways."""

    async def score_pickled(request: Request) -> Response:
        check_token(request, token)
        body = await limited(request, scorer.limits.request_bytes).body()
        scores = await scorer.score(await asyncio.to_thread(read_flow_grpo, body, scorer.limits))
        if abstained := [number for number, value in enumerate(scores) if math.isnan(value)]:
            # a NaN would go into the trainer's advantages without a word
            raise UserError(
                f"the reward abstained on image {abstained[0]} ({len(abstained)} of {len(scores)}), and this protocol has "
                "no word for that: use a reward that always scores, or POST /score"
            )
        return pickled({"scores": scores})

    for path in FLOW_GRPO_PATHS:
        app.post(path, include_in_schema=False)(score_pickled)


def check_token(request: Request, token: str) -> None:
    """401 where a token is set and the request has another, or none.

    It comes as a bearer token, or as the password of HTTP Basic, which clients send for http://any:TOKEN@host.
    """
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
    if token and not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise HTTPException(
            401,
            "the request has no valid token: send the header 'Authorization: Bearer TOKEN'",
            {"WWW-Authenticate": "Bearer"},
        )


def add_refusals(app: FastAPI, pickled_paths: tuple[str, ...]) -> None:
    """Each error as one line: {"detail": …} in JSON, or {"error": …} pickled on the paths that speak so."""

    def refuse(request: Request, error: Exception) -> Response:
        status, line, headers = refusal(error)
        line = " ".join(line.split())[:500]
        if request.url.path in pickled_paths:
            return pickled({"error": line}, status)
        return JSONResponse({"detail": line}, status, headers)

    for kind in (StarletteHTTPException, UserError, RewardError, ClientDisconnect, Exception):
        app.add_exception_handler(kind, refuse)


def refusal(error: Exception) -> tuple[int, str, Mapping[str, str] | None]:
    """Status, line and headers of an error.

    500 only where asking again may help: flow_grpo repeats a request up to a thousand times after it.
    """
    match error:
        case StarletteHTTPException():
            return error.status_code, str(error.detail), error.headers
        case TooLarge():
            return 413, str(error), None
        case UserError():
            return 422, str(error), None
        case RewardError():
            return 500, str(error), None
        case ClientDisconnect():
            return CLIENT_CLOSED, "the client has gone", None
        case _:
            return 500, "the server failed, and its log says where", None


def pickled(answer: dict[str, Any], status: int = 200) -> Response:
    """An answer in flow_grpo's protocol."""
    return Response(pickle.dumps(answer, PICKLE_PROTOCOL), status, media_type="application/octet-stream")


class Counted:
    """Middleware that counts each request with its path, status and seconds."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            self.metrics.request(path, status, time.perf_counter() - began)
