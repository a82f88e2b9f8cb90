"""One thread that scores the images of all requests, in batches that reach across them."""

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.types import Reward

LOG = logging.getLogger("mmrlhf.serve")


class RewardError(Exception):
    """The reward raised, or gave no scores that can be sent: one line for who asked; the traceback is in the log."""


@dataclass(eq=False)
class Job:
    """The images of one request, and the scores that have come so far."""

    images: list[Float[Tensor, "3 _ _"]]
    prompts: Sequence[str]
    scores: dict[int, float] = field(default_factory=dict)
    future: "Future[list[float]]" = field(default_factory=Future)


class Row(NamedTuple):
    """One image of a job, and when it came."""

    job: Job
    number: int
    since: float


class Batcher:
    """Scores rows of the same image size together, at most `max_batch`; none waits for company longer than `max_wait` seconds.

    `observe` is told the size of each batch, its seconds, and whether the reward scored it.
    """

    def __init__(
        self, reward: Reward, *, max_batch: int, max_wait: float, observe: Callable[[int, float, bool], None]
    ) -> None:
        self.reward, self.max_batch, self.max_wait, self.observe = reward, max_batch, max_wait, observe
        self.waiting: dict[torch.Size, deque[Row]] = {}
        self.closed = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._work, name="scorer", daemon=True)
        self.thread.start()

    def submit(self, images: list[Float[Tensor, "3 _ _"]], prompts: Sequence[str]) -> "Future[list[float]]":
        """A score an image, in order, NaN where the reward abstains; or RewardError. At least one image."""
        job = Job(images, prompts)
        job.future.set_running_or_notify_cancel()  # who asked may go away, but its rows are in batches with others'
        now = time.monotonic()
        with self.changed:
            if self.closed:
                raise RewardError("the server is stopping: ask again when it is back")
            for number, image in enumerate(images):
                self.waiting.setdefault(image.shape, deque()).append(Row(job, number, now))
            self.changed.notify()
        return job.future

    def close(self) -> None:
        """End after the batch at hand; what still waits fails."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()

    def _work(self) -> None:
        try:
            while rows := self._take():
                self._score(rows)
        finally:  # whatever ends this thread, nobody is left waiting for it
            with self.changed:
                self.closed = True
                for row in [row for group in self.waiting.values() for row in group]:
                    fail(row.job, RewardError("the server is stopping: ask again when it is back"))

    def _take(self) -> list[Row]:
        """The next batch, as soon as it is full or its oldest row has waited enough; nothing after `close`."""
        with self.changed:
            while not self.closed:
                now = time.monotonic()
                oldest = min(self.waiting, key=lambda size: self.waiting[size][0].since, default=None)
                full = next((size for size, rows in self.waiting.items() if len(rows) >= self.max_batch), None)
                left = math.inf if oldest is None else self.waiting[oldest][0].since + self.max_wait - now
                chosen = oldest if left <= 0 else full
                if chosen is not None:
                    return self._pop(chosen)
                self.changed.wait(None if left == math.inf else left)
        return []

    def _pop(self, size: torch.Size) -> list[Row]:
        rows = self.waiting[size]
        batch = [rows.popleft() for _ in range(min(len(rows), self.max_batch))]
        if not rows:
            del self.waiting[size]
        return batch

    def _score(self, rows: list[Row]) -> None:
        """Give each row's job its score. Where the batch fails, each job's rows are tried alone, and only those that fail do."""
        rows = [row for row in rows if not row.job.future.done()]  # of a job that failed elsewhere
        if not rows:
            return
        try:
            scores = self._call(rows)
        except Exception as error:
            jobs = list(dict.fromkeys(row.job for row in rows))
            if len(jobs) > 1:
                for job in jobs:
                    self._score([row for row in rows if row.job is job])
                return
            LOG.error("the reward failed on a request of %d images", len(jobs[0].images), exc_info=error)
            fail(jobs[0], RewardError(f"the reward failed on these images ({type(error).__name__}: {error})"))
            return
        for row, score in zip(rows, scores, strict=True):
            row.job.scores[row.number] = score
            if len(row.job.scores) == len(row.job.images):
                row.job.future.set_result([row.job.scores[number] for number in range(len(row.job.images))])

    def _call(self, rows: list[Row]) -> list[float]:
        """The reward's scores of one batch. ValueError where they are not one number a row."""
        images = torch.stack([row.job.images[row.number] for row in rows])
        with self._observed(len(rows)), torch.no_grad():
            scores = self.reward(images, [row.job.prompts[row.number] for row in rows])
            if scores.shape != (len(rows),):
                raise ValueError(f"it gave scores of shape {tuple(scores.shape)} for {len(rows)} images")
            if scores.isinf().any():
                raise ValueError("it gave an infinite score: allowed are numbers, and NaN to abstain")
            return scores.double().tolist()

    @contextlib.contextmanager
    def _observed(self, size: int) -> Iterator[None]:
        began, scored = time.perf_counter(), False
        try:
            yield
            scored = True
        finally:
            self.observe(size, time.perf_counter() - began, scored)


def fail(job: Job, error: RewardError) -> None:
    """Answer a job with an error, unless it has its answer."""
    if not job.future.done():
        job.future.set_exception(error)
