"""Two rounds: the guarantees against every subset, the single machine's objective, unequal shards, `already`, and resuming."""

import tracemalloc
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from selection.choice import Choice
from selection.facility_location import facility_location
from selection.files import read_stacked
from selection.kcenter import kcenter
from selection.random_choice import random_choice
from selection.shards import Shared, Task, choose_in_shards, one_by_one
from selection.stacked import Stacked
from tests.selection.data import cosines, distances, gaussian, seeded
from tests.selection.invariants import Request, check_choice, requests


def cut(x: np.ndarray, sizes: Sequence[int]) -> Stacked:
    """The rows as matrices of these sizes, of which the last takes the rest."""
    return read_stacked(np.split(x, np.cumsum(sizes)))


class Small(NamedTuple):
    """Few rows, in shards of any sizes; a budget; some rows selected already; a seed."""

    rows: int
    sizes: list[int]
    budget: int
    already: list[int]
    seed: int
    apart: bool

    def data(self) -> tuple[np.ndarray, Stacked]:
        """The rows, also in shards; around one place, or around three, in order, so that shards differ."""
        x = gaussian(self.rows, 2, self.seed)
        if self.apart:
            x += 20 * np.sort(np.random.default_rng(self.seed).integers(3, size=self.rows))[:, None].astype(np.float32)
        return x, cut(x, self.sizes)


@st.composite
def small(draw: st.DrawFn) -> Small:
    """Numbers only: rows are made in the test."""
    rows = draw(st.integers(4, 11))
    sizes = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) <= rows))
    already = draw(st.lists(st.integers(0, rows - 1), max_size=2, unique=True))
    budget = draw(st.integers(1, min(3, rows - len(already))))
    return Small(rows, sizes, budget, already, draw(st.integers(0, 10_000)), draw(st.booleans()))


@settings(max_examples=100, deadline=None)
@given(case=small())
def test_radius_is_at_most_four_times_the_best(case: Small) -> None:
    (x, stacked), budget, already, seed = case.data(), case.budget, case.already, case.seed
    between = distances(x)
    picks = choose_in_shards(stacked, budget, already=already, generator=seeded(seed)).indices.tolist()
    best = min(
        between[:, [*already, *subset]].min(axis=1).max() for subset in combinations(range(len(x)), budget)
    )  # rows of `already` among the subset only leave it fewer
    assert between[:, [*already, *picks]].min(axis=1).max() <= 4 * best + 1e-5


@settings(max_examples=100, deadline=None)
@given(case=small())
def test_summed_similarity_is_within_its_bound(case: Small) -> None:
    (x, stacked), budget, already, seed = case.data(), case.budget, case.already, case.seed
    similarity = cosines(x.astype(np.float64))
    before = similarity[:, already].max(axis=1) if already else np.zeros(len(x))

    def value(subset: Sequence[int]) -> float:
        return float(np.maximum(similarity[:, list(subset)].max(axis=1) - before, 0).sum())

    choice = choose_in_shards(
        stacked, budget, strategy="facility-location", already=already, generator=seeded(seed), epsilon=0.0
    )
    best = max(value(subset) for subset in combinations(range(len(x)), budget))
    shards = sum(count > 0 for count in stacked.counts)
    assert value(choice.indices.tolist()) >= (1 - 1 / np.e) / np.sqrt(min(shards, budget)) * best - 1e-5
    assert choice.gains.sum() == pytest.approx(value(choice.indices.tolist()), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("strategy", ["kcenter", "facility-location", "random"])
@settings(max_examples=40, deadline=None)
@given(request=requests(), shards=st.integers(1, 6))
def test_invariants(strategy: str, request: Request, shards: int) -> None:
    def choose(x: np.ndarray, budget: int, **options: Any) -> Choice:
        stacked = cut(x, [len(x) // 3])
        return choose_in_shards(stacked, budget, strategy=strategy, shards=min(shards, len(x)), **options)

    check_choice(choose, request)


def clusters(rows: int = 2000) -> np.ndarray:
    """Rows around 30 centres, in random order."""
    return gaussian(rows, 8) + 5 * gaussian(30, 8, 1)[np.random.default_rng(2).integers(30, size=rows)]


@pytest.mark.parametrize("sizes", [[200] * 9, [3, 500, 40, 1000]])
def test_close_to_the_single_machine(sizes: list[int]) -> None:
    x = clusters()
    stacked, between, similarity = cut(x, sizes), distances(x), cosines(x)
    one, many = (f(x, stacked, "kcenter", kcenter) for f in (single, sharded))
    radii = [between[:, picks].min(axis=1).max() for picks in (one, many)]
    assert radii[1] < 1.3 * radii[0]
    one, many = (f(x, stacked, "facility-location", facility_location) for f in (single, sharded))
    values = [similarity[:, picks].max(axis=1).sum() for picks in (one, many)]
    drawn = similarity[:, random_choice(x, 50, generator=seeded()).indices].max(axis=1).sum()
    assert values[1] - drawn > 0.9 * (values[0] - drawn) > 0


def single(x: np.ndarray, stacked: Stacked, strategy: str, choose: Any) -> list[int]:
    """50 rows on one machine."""
    return choose(x, 50, generator=seeded()).indices.tolist()


def sharded(x: np.ndarray, stacked: Stacked, strategy: str, choose: Any) -> list[int]:
    """50 rows in two rounds."""
    return choose_in_shards(stacked, 50, strategy=strategy, generator=seeded()).indices.tolist()


def test_one_shard_of_k_center_is_as_wide_as_the_plain_choice() -> None:
    x, already = clusters(300), [5, 7]
    plain = kcenter(x, 20, already=already, generator=seeded())
    same = choose_in_shards(read_stacked([x]), 20, already=already, generator=seeded())
    assert (same.indices == plain.indices).all() and same.gains == pytest.approx(plain.gains)


def test_random_is_the_same_without_shards() -> None:
    x = gaussian(90, 2)
    picks = choose_in_shards(cut(x, [4, 70]), 9, strategy="random", already=[3], generator=seeded()).indices
    assert (picks == random_choice(x, 9, already=[3], generator=seeded()).indices).all()


def test_rows_selected_already_count_in_every_shard() -> None:
    centres = 100 * np.eye(6, dtype=np.float32)
    x = np.repeat(centres, 20, axis=0) + gaussian(120, 6)
    already = [0, 20, 40, 60]  # four of the six clusters, all in the first two thirds
    picks = choose_in_shards(
        cut(np.roll(x, 30, axis=0), [50, 30]), 2, already=[a + 30 for a in already], generator=seeded()
    )
    assert sorted((picks.indices - 30) % 120 // 20) == [4, 5]


def test_budget_larger_than_a_shard_and_shards_that_are_all_selected() -> None:
    x = gaussian(30, 3)
    asked: list[int] = []

    def run(tasks: Sequence[Task], shared: Shared) -> Iterator[tuple[Task, Choice]]:
        asked.extend(task.budget for task in tasks)
        return one_by_one(tasks, shared)

    choice = choose_in_shards(cut(x, [2, 3, 8]), 12, already=[0, 1, 3], generator=seeded(), run=run)
    assert asked == [2, 8, 12]  # nothing is left of the first shard
    assert len(set(choice.indices.tolist()) | {0, 1, 3}) == 15
    everything = choose_in_shards(cut(x, [2, 3, 8]), 27, already=[0, 1, 3], generator=seeded())
    assert sorted([*everything.indices.tolist(), 0, 1, 3]) == list(range(30))


def test_the_order_in_which_shards_finish_changes_nothing() -> None:
    def backwards(tasks: Sequence[Task], shared: Shared) -> Iterator[tuple[Task, Choice]]:
        return one_by_one(list(reversed(tasks)), shared)

    for strategy in ("kcenter", "facility-location"):
        found = [
            choose_in_shards(cut(clusters(300), [90]), 20, strategy=strategy, shards=7, generator=seeded(4), run=run)
            for run in (one_by_one, backwards)
        ]
        assert (found[0].indices == found[1].indices).all()


@pytest.mark.parametrize("strategy", ["kcenter", "facility-location"])
def test_finished_shards_are_kept_after_a_kill(strategy: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", clusters(300))
    ran: list[int] = []

    def run(tasks: Sequence[Task], shared: Shared) -> Iterator[tuple[Task, Choice]]:
        for task, choice in one_by_one(tasks, shared):
            if task.number == 3 and not ran:
                raise KeyboardInterrupt
            yield task, choice
        ran.extend(task.number for task in tasks)

    def choose(seed: int = 0, budget: int = 10, **options: Any) -> list[int]:
        stacked = read_stacked([tmp_path / "x.npy"])
        given: dict[str, Any] = {"strategy": strategy, "shards": 5, "cache": tmp_path / "cache", "run": run} | options
        return choose_in_shards(stacked, budget, generator=seeded(seed), **given).indices.tolist()

    with pytest.raises(KeyboardInterrupt):
        choose()
    assert len(list((tmp_path / "cache" / "shards").iterdir())) == 3
    ran.append(-1)
    assert choose() == choose(cache=None, run=one_by_one) and ran == [-1, 3, 4]
    kept = sorted((tmp_path / "cache" / "shards").iterdir())
    kept[0].write_text('{"indices": [')  # cut off by another program
    kept[1].unlink()
    assert choose() == choose(cache=None, run=one_by_one) and len(ran) == 5  # these two again, the others not
    for other in ({"seed": 1}, {"budget": 11}, {"already": [7]}, {"shards": 6}):
        ran.clear()
        ran.append(-1)
        choose(**other)
        assert ran == [-1, *range(6 if "shards" in other else 5)]
    np.save(tmp_path / "x.npy", clusters(301))
    ran.clear()
    ran.append(-1)
    choose()
    assert ran == [-1, 0, 1, 2, 3, 4]


def test_rows_in_memory_are_kept_by_their_values(tmp_path: Path) -> None:
    x = gaussian(60, 3)
    ran: list[int] = []

    def run(tasks: Sequence[Task], shared: Shared) -> Iterator[tuple[Task, Choice]]:
        ran.extend(task.number for task in tasks)
        return one_by_one(tasks, shared)

    for _ in "ab":
        choose_in_shards(read_stacked([x]), 4, shards=3, generator=seeded(), cache=tmp_path, run=run)
    x[30] += 1
    choose_in_shards(read_stacked([x]), 4, shards=3, generator=seeded(), cache=tmp_path, run=run)
    assert ran == [0, 1, 2, 1]


def test_memory_is_that_of_one_shard(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", gaussian(40_000, 64).astype(np.float16))
    peaks = {}
    for shards in (1, 20):
        tracemalloc.start()
        choose_in_shards(read_stacked([tmp_path / "x.npy"]), 5, shards=shards, generator=seeded())
        peaks[shards] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[1] > 40_000 * 64 * 4 > 5 * peaks[20]


def test_facility_location_serves_the_same_drawn_rows_in_every_shard() -> None:
    x = clusters(1500)
    similarity = cosines(x)
    choice = choose_in_shards(cut(x, [100, 700]), 30, strategy="facility-location", generator=seeded(), most_served=400)
    value = similarity[:, choice.indices].max(axis=1).sum()
    whole = similarity[:, facility_location(x, 30, generator=seeded()).indices].max(axis=1).sum()
    assert value > 0.98 * whole and choice.gains.sum() == pytest.approx(value, rel=0.02)


def test_what_cannot_be_done_is_told(tmp_path: Path) -> None:
    x = gaussian(10, 3)
    for shards in (0, 11):
        with pytest.raises(UserError, match=f"got {shards} shards, allowed are 1 to 10"):
            choose_in_shards(read_stacked([x]), 2, shards=shards, generator=seeded())
    with pytest.raises(UserError, match="dpp cannot be run on shards, allowed are kcenter, facility-location, random"):
        choose_in_shards(read_stacked([x]), 2, strategy="dpp", generator=seeded())
    with pytest.raises(UserError, match="got budget 9, allowed is 1 to 8"):
        choose_in_shards(read_stacked([x]), 9, already=[1, 2], generator=seeded())
    x[7, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(
        UserError, match="shard 1, which starts at row 5, of .*x.npy: row 2 of the embeddings holds NaN"
    ):
        choose_in_shards(read_stacked([tmp_path / "x.npy"]), 2, shards=2, generator=seeded())
