"""What a request may be at most: a middleware that reads no body of more than a megabyte."""

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 1_000_000  # a draft with a thousand marks is a tenth of it
METHODS = ("POST", "PUT", "PATCH", "DELETE")


class BodyLimit:
    """Answers 413 to a body that is too long, whatever its headers say, before any route sees it."""

    def __init__(self, app: ASGIApp, most: int = MOST_BYTES) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in METHODS:
            await self.app(scope, receive, send)
            return
        body = await self.read(scope, receive)
        if body is None:
            await refuse(send, self.most)
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, replay, send)

    async def read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None as soon as it is known to be too long, or when the browser is gone."""
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self.most:
            return None
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if message["type"] != "http.request" or len(body) > self.most:
                return None
            if not message.get("more_body", False):
                return bytes(body)


async def refuse(send: Send, most: int) -> None:
    """413, in words for whoever sent it."""
    body = b'{"detail": "This is more than %d bytes, which is all that is taken at once."}' % most
    headers: list[tuple[bytes, Any]] = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})
