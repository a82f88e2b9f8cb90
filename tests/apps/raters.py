"""The rating app as tests reach it: as a process, as a thread, and as a rater's page in a real browser."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx

from apps.rate import serve
from mmrlhf.store import Store

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def served(store: Store, **options) -> Iterator[httpx.Client]:
    """A client of the app, served in a thread."""
    handle = serve(store, port=0, block=False, **options)
    try:
        with httpx.Client(base_url=handle.url, trust_env=False) as client:
            yield client
    finally:
        handle.close()


class App:
    """`mmrlhf rate` as a process."""

    def __init__(self, *options: str, errors: int | None = None) -> None:
        program = "from mmrlhf.cli import main; main()"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", program, "rate", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert self.process.stdout is not None
        self.lines = [self.process.stdout.readline(), self.process.stdout.readline()]
        found = re.search(r"http://\S+", self.lines[1])
        assert found, self.lines
        self.url = found.group()

    def __enter__(self) -> "App":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop(signal.SIGKILL)

    def stop(self, how: int = signal.SIGINT) -> str:
        """What it prints at the end."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.communicate(timeout=120)[0]


def enter(browser, url: str, name: str, answered: int = 0, **options):
    """A page of its own browser profile, after the rater, who has `answered` so many before, gave a name."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(20_000)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: page.problems.append(request.url) if not request.url.startswith(url) else None)
    page.goto(url)
    page.fill("#mm-name", name)
    page.keyboard.press("Enter")
    ready(page, answered)
    return page


def ready(page, answered: int) -> None:
    """Wait until the page has counted the answers, and takes one on the pictures it shows."""
    page.wait_for_function(
        """(count) => {
            const card = document.querySelector(".mm");
            if (!card) return false;
            const asks = card.querySelector(".mm-pictures").ariaBusy === "false";
            return !card.classList.contains("mm-busy") && card.querySelector(".mm-count").textContent.startsWith(count + " of")
                && (card.dataset.screen === "done" || asks);
        }""",
        arg=answered,
    )
