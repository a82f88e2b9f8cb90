"""Rows of many jobs share batches; each job gets its own scores, or its own failure."""

import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.rewards.serving.batching import Batcher, RewardError


class Telltale:
    """Scores an image by its first pixel and its prompt's number; remembers its batches, waits for `gate`."""

    differentiable = False

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        self.gate.wait(10)
        self.batches.append(list(prompts))
        if any(prompt == "raise" for prompt in prompts):
            raise RuntimeError("no such prompt")
        if any(prompt == "short" for prompt in prompts):
            return torch.zeros(len(prompts) - 1)
        special = {"abstain": math.nan, "infinite": math.inf}
        numbers = [special.get(prompt) or float(prompt) for prompt in prompts]
        return images[:, 0, 0, 0].double() + 1000 * torch.tensor(numbers, dtype=torch.float64)


@contextmanager
def batching(reward: Any, max_batch: int = 8, max_wait: float = 0.0) -> Iterator[Batcher]:
    batcher = Batcher(reward, max_batch=max_batch, max_wait=max_wait, observe=lambda *_: None)
    try:
        yield batcher
    finally:
        reward.gate.set()
        batcher.close()


def image(value: float, size: int = 2) -> torch.Tensor:
    return torch.full((3, size, size), float(value))


def held(reward: Telltale, batcher: Batcher) -> "Future[list[float]]":
    """A job at which the worker stands until the gate opens; what is submitted next waits together."""
    reward.gate.clear()
    first = batcher.submit([image(0, size=9)], ["0"])
    while batcher.waiting:
        pass
    return first


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 999), st.integers(2, 3)), min_size=1, max_size=5), max_size=12),
    st.integers(1, 6),
)
def test_every_job_gets_its_scores_in_its_order(jobs: list[list[tuple[int, int]]], max_batch: int) -> None:
    reward = Telltale()
    with batching(reward, max_batch=max_batch) as batcher:
        futures = [
            batcher.submit([image(value, size) for value, size in job], [f"{number}{i}" for i in range(len(job))])
            for number, job in enumerate(jobs)
        ]
        for number, (job, future) in enumerate(zip(jobs, futures, strict=True)):
            assert future.result(10) == [value + 1000 * int(f"{number}{i}") for i, (value, _) in enumerate(job)]
    assert all(len(batch) <= max_batch for batch in reward.batches)


def test_requests_that_wait_together_are_scored_together() -> None:
    reward = Telltale()
    with batching(reward, max_batch=3) as batcher:
        first = held(reward, batcher)
        futures = [batcher.submit([image(i)], [str(i)]) for i in range(5)]
        reward.gate.set()
        assert [future.result(10) for future in futures] == [[1001.0 * i] for i in range(5)]
        assert first.result(10) == [0.0]
    assert reward.batches == [["0"], ["0", "1", "2"], ["3", "4"]]


def test_a_row_waits_for_company_until_the_batch_is_full() -> None:
    reward = Telltale()
    with batching(reward, max_batch=2, max_wait=60.0) as batcher:
        futures = [batcher.submit([image(i)], [str(i)]) for i in range(2)]
        assert [future.result(10) for future in futures] == [[0.0], [1001.0]]
        alone = batcher.submit([image(1, size=3)], ["1"])
        others = batcher.submit([image(1), image(2)], ["1", "2"])  # a full batch need not wait for an older row
        assert others.result(10) == [1001.0, 2002.0]
        assert not alone.done()
    assert isinstance(alone.exception(10), RewardError)


def test_a_failure_stays_with_its_job(caplog: pytest.LogCaptureFixture) -> None:
    reward = Telltale()
    with batching(reward) as batcher:
        held(reward, batcher)
        prompts = ["1", "raise", "2", "infinite", "abstain", "short"]
        futures = [batcher.submit([image(0)], [prompt]) for prompt in prompts]
        two_sizes = batcher.submit([image(0), image(0, size=3)], ["raise", "3"])
        reward.gate.set()
        assert futures[0].result(10) == [1000.0] and futures[2].result(10) == [2000.0]
        assert math.isnan(futures[4].result(10)[0])
        for future, line in (
            (futures[1], r"failed on these images \(RuntimeError: no such prompt\)"),
            (futures[3], "infinite score"),
            (futures[5], r"scores of shape \(0,\) for 1 images"),
            (two_sizes, "no such prompt"),
        ):
            with pytest.raises(RewardError, match=line):
                future.result(10)
        assert batcher.submit([image(0)], ["4"]).result(10) == [4000.0]  # and goes on
    assert "no such prompt" in caplog.text


def test_a_job_that_nobody_waits_for_is_scored_all_the_same() -> None:
    reward = Telltale()
    with batching(reward) as batcher:
        held(reward, batcher)
        gone, stays = batcher.submit([image(0)], ["1"]), batcher.submit([image(0)], ["2"])
        assert not gone.cancel()
        reward.gate.set()
        assert stays.result(10) == [2000.0]


def test_closing_answers_everybody() -> None:
    reward = Telltale()
    batcher = Batcher(reward, max_batch=8, max_wait=60.0, observe=lambda *_: None)
    waiting = batcher.submit([image(0), image(0, size=3)], ["1", "2"])
    batcher.close()
    with pytest.raises(RewardError, match="the server is stopping"):
        waiting.result(0)
    with pytest.raises(RewardError, match="the server is stopping"):
        batcher.submit([image(0)], ["1"])
    assert not batcher.thread.is_alive()


def test_batches_are_observed() -> None:
    seen: list[tuple[int, float, bool]] = []
    batcher = Batcher(Telltale(), max_batch=2, max_wait=60.0, observe=lambda *batch: seen.append(batch))
    batcher.submit([image(0), image(0)], ["1", "2"]).result(10)
    with pytest.raises(RewardError):
        batcher.submit([image(0), image(0)], ["1", "raise"]).result(10)
    batcher.close()
    assert [(size, scored) for size, _, scored in seen] == [(2, True), (2, False)]
    assert all(seconds >= 0 for _, seconds, _ in seen)
