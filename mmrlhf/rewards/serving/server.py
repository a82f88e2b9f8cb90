"""An app on a socket: bound before anything is loaded, served until Ctrl-C, or in a thread of its own."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from mmrlhf.errors import UserError

SECONDS_TO_END = 10  # what requests in flight have left after Ctrl-C


def bind(host: str, port: int) -> socket.socket:
    """A socket with this address, which answers nobody yet. UserError where the address cannot be had."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port got {port}, allowed is 0 (any free one) to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise UserError(
            f"cannot serve at {host}:{port} ({error.strerror}): give another --port (0 takes any free one) or --host"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Where its clients on this machine go."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server(app: Any) -> uvicorn.Server:
    """A uvicorn server for an app; its `run(sockets=[…])` blocks until Ctrl-C or SIGTERM."""
    return uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=SECONDS_TO_END)
    )


@contextlib.contextmanager
def running(app: Any, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Inside, the app is served by a thread, at the URL that comes out; afterwards it has ended."""
    listener = bind(host, port)
    in_thread = server(app)
    thread = threading.Thread(target=lambda: asyncio.run(in_thread.serve(sockets=[listener])), daemon=True)
    thread.start()
    try:
        while thread.is_alive() and not in_thread.started:
            time.sleep(0.01)
        yield url_of(listener)
    finally:
        in_thread.should_exit = True
        thread.join()
        listener.close()
