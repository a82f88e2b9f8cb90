"""An app on a socket: served until Ctrl-C, or in a thread of its own."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from mmrlhf.sockets import bind, url_of

SECONDS_TO_END = 10  # what requests in flight have left after Ctrl-C


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
