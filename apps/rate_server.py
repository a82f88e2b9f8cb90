"""The rating app as a running web server: started, waited for, and stopped."""

import asyncio
import contextlib
import functools
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from apps.owner_token import Owner
from apps.rate_checks import NO_CHECKS, Checks
from apps.rate_clock import NO_LIMITS, Clock
from apps.rate_examples import Example
from apps.rate_items import KINDS, Mode
from mmrlhf.sockets import bind
from mmrlhf.store import Store, Task
from mmrlhf.store.accounts import Access

FAREWELL_SECONDS = 2.0  # the last rater's page still learns that it is done
OFFER_SECONDS = 6.0  # every open page has asked for questions once more by then (rate_card.js asks every 5 s)


class Handle:
    """A server in a thread of its own, on an app that `build` makes there; `url` is where raters go."""

    def __init__(self, build: Callable[[], Any], listener: socket.socket, url: str) -> None:
        self.url = url
        self.server: Any = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(build, listener), daemon=True)
        self.thread.start()
        while self.thread.is_alive() and not (self.server and self.server.started):
            time.sleep(0.02)
        if not self.thread.is_alive():
            listener.close()
            raise RuntimeError("the web server ended while it started") from self.error

    def close(self) -> None:
        """Stop answering; returns when the last request has ended."""
        self.server.should_exit = True
        self.thread.join()

    def _run(self, build: Callable[[], Any], listener: socket.socket) -> None:
        try:
            asyncio.run(self._serve(build, listener))
        except BaseException as error:
            self.error = error

    async def _serve(self, build: Callable[[], Any], listener: socket.socket) -> None:
        import uvicorn

        # the app is made inside the loop that serves it: outside of one, Gradio makes loops and never closes them
        config = uvicorn.Config(build(), log_level="warning", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        await self.server.serve(sockets=[listener])


def serve(
    store: Store,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    block: bool = True,
    wanted: int | None = None,
    mode: Mode = "pair",
    overlap: int = 1,
    annotator_names: Sequence[str] = (),
    instructions: str = "",
    more_to_come: bool = False,
    tags: Sequence[str] = (),
    access: Access = "names",
    owner: Owner | None = None,
    checks: Checks = NO_CHECKS,
    clock: Clock = NO_LIMITS,
    examples: Sequence[Example] = (),
) -> Handle:
    """Serve the store's queued tasks to raters; UserError where the address cannot be had.

    `block` waits until Ctrl-C, or until the store holds `wanted` judgements of the mode, and stops the server. Without it,
    the running server comes back at once, to be closed by the caller. `more_to_come` has the page ask raters to stay when
    they are through; `tags` are what points may say. `owner` says who sees the owner's page; without, there is none.
    `checks` are mixed in among the tasks; `clock` says how long a question may take; `examples` show what is meant.
    """
    from apps.rate_api import build_app  # imports gradio: seconds

    listener = bind(host, port)
    shown_host = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    build = functools.partial(
        build_app,
        store,
        mode=mode,
        overlap=overlap,
        annotator_names=annotator_names,
        instructions=instructions,
        more_to_come=more_to_come,
        tags=tags,
        access=access,
        owner=owner,
        checks=checks,
        clock=clock,
        examples=examples,
    )
    handle = Handle(build, listener, f"http://{shown_host}:{listener.getsockname()[1]}")
    print(f"rate at {handle.url} (Ctrl-C stops; every judgement is kept)", flush=True)
    if owner is not None:
        print(f"the owner's page: {owner.link(handle.url)}", flush=True)
    if block:
        try:
            with contextlib.suppress(KeyboardInterrupt):
                wait_for(store, wanted, mode, overlap)
        finally:
            handle.close()
    return handle


def serve_until(store: Store, tasks: Sequence[Task], *, overlap: int = 1, **options: Any) -> None:
    """Serve until each of the pairs `tasks` has its `overlap` votes, or was skipped and nobody else takes it.

    The server is stopped then. `options` are others of `serve`. Ctrl-C raises KeyboardInterrupt; the judgements are kept.
    """
    handle = serve(store, block=False, overlap=overlap, **options)
    try:
        wait_until_settled(store, tasks, overlap)
    finally:
        handle.close()


def wait_until_settled(store: Store, tasks: Sequence[Task], overlap: int) -> None:
    """Return when none of the tasks waits for anybody, and none has come to wait again after the time to offer a skipped one."""
    keys = {task.key for task in tasks}
    settled = False
    while not settled:
        while keys & store.waiting(overlap):
            time.sleep(0.5)
        time.sleep(OFFER_SECONDS)
        settled = not keys & store.waiting(overlap)


def wait_for(store: Store, wanted: int | None, mode: Mode, overlap: int = 1) -> None:
    """Return a moment after the store holds `wanted` judgements, or every question has all its votes.

    Without a number, never: new questions may come.
    """
    while wanted is None or judgements(store, mode) < wanted:
        progress = store.progress("", overlap, kind=KINDS[mode])
        if wanted is not None and progress.complete == progress.tasks:
            break
        time.sleep(0.5)
    time.sleep(FAREWELL_SECONDS)


def judgements(store: Store, mode: Mode) -> int:
    """How many current judgements of a mode the store holds."""
    return store.count(KINDS[mode])
