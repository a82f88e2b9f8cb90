"""k-means++: the chances of D² sampling, its guarantee, copies, and rows read from a file."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings

from mmrlhf.errors import UserError
from selection.kmeans_plus_plus import Contest, kmeans_plus_plus
from selection.rows import Rows
from tests.selection.data import distances, gaussian, seeded
from tests.selection.invariants import Request, check_choice, check_refusals, requests, streamed


def test_the_next_row_is_drawn_by_its_squared_distance() -> None:
    x = np.array([[0.0], [1.0], [2.0], [3.0], [3.0]])  # squared distances to row 0: 1, 4, 9, 9
    counts, generator = np.zeros(5), seeded()
    for _ in range(2300):
        counts[kmeans_plus_plus(x, 1, already=[0], generator=generator, trials=1).indices[0]] += 1
    assert counts[0] == 0
    assert (np.abs(counts[1:] - [100, 400, 900, 900]) < [45, 85, 110, 110]).all()  # 4.6 standard deviations


def test_two_picks_have_the_chances_of_all_orders_enumerated() -> None:
    x = gaussian(5, 2)
    squared = distances(x) ** 2
    expected = np.zeros((5, 5))
    for first in range(5):
        expected[first] = squared[first] / squared[first].sum() / 5
    counts, generator = np.zeros((5, 5)), seeded(1)
    for _ in range(4000):
        counts[tuple(kmeans_plus_plus(x, 2, generator=generator, trials=1).indices)] += 1
    error = (counts - 4000 * expected) / np.sqrt(4000 * expected + 1e-9)
    assert (counts[expected == 0] == 0).all() and np.abs(error[expected > 0]).max() < 4.5


def test_squared_distances_stay_within_the_theorem_on_average() -> None:
    x = np.concatenate([gaussian(4, 2, seed) + [[9 * seed, 0]] for seed in range(3)])
    squared = distances(x) ** 2
    best = min(squared[:, subset].min(axis=1).sum() for subset in combinations(range(12), 3))
    costs = {}
    for trials in (1, 4):
        picks = [kmeans_plus_plus(x, 3, generator=seeded(i), trials=trials).indices for i in range(200)]
        costs[trials] = [squared[:, pick].min(axis=1).sum() for pick in picks]
        assert best <= np.mean(costs[trials]) < 8 * (np.log(3) + 2) * best
        assert np.median(costs[trials]) < 3 * best  # what separates it from a uniform draw
    assert np.mean(costs[4]) < 0.8 * np.mean(costs[1])
    drawn = [squared[:, np.random.default_rng(i).permutation(12)[:3]].min(axis=1).sum() for i in range(200)]
    assert np.median(drawn) > 3 * best


def test_of_several_draws_the_one_that_lowers_the_sum_the_most_is_taken() -> None:
    x = gaussian(12, 2)
    squared = distances(x) ** 2
    chance = squared[0] / squared[0].sum()
    after = np.minimum(squared, squared[0]).sum(axis=1)
    expected = np.zeros(12)
    for one, other in product(range(12), repeat=2):
        expected[one if after[one] <= after[other] else other] += chance[one] * chance[other]
    counts, generator = np.zeros(12), seeded(3)
    for _ in range(4000):
        counts[kmeans_plus_plus(x, 1, already=[0], generator=generator, trials=2).indices[0]] += 1
    error = (counts - 4000 * expected) / np.sqrt(4000 * expected + 1e-9)
    assert counts[expected == 0].sum() == 0 and np.abs(error[expected > 0]).max() < 4.5


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_the_distances_stay_exact_though_only_near_rows_are_computed(shift: float) -> None:
    x = (np.repeat(gaussian(40, 6), 5, axis=0) + 0.01 * gaussian(200, 6, 1) + shift).astype(np.float32)
    rows = Rows(x)
    contest, near, chosen = Contest(rows), np.full(200, np.inf), []
    for drawn in np.random.default_rng(0).integers(200, size=(30, 4)):
        chosen.append(contest.take_best(near, drawn)[0])
        wide = rows[slice(0, 200)].astype(np.float64)
        exact = ((wide[:, None] - wide[chosen]) ** 2).sum(axis=2).min(axis=1)
        np.testing.assert_allclose(near, exact, rtol=1e-5)
        assert (near[chosen] == 0).all()


def test_gains_are_the_distances_to_the_rows_before() -> None:
    x = gaussian(150, 6) * np.float32(7)
    choice = kmeans_plus_plus(x, 30, already=[4], generator=seeded())
    order = [4, *choice.indices]
    between = distances(x)[np.ix_(order, order)]
    np.testing.assert_allclose(choice.gains, [between[k, :k].min() for k in range(1, 31)], rtol=1e-5)
    assert choice.why[0].startswith("drawn, ")
    assert kmeans_plus_plus(x, 2, generator=seeded()).why[0] == "start: drawn"


def test_copies_come_last() -> None:
    x = np.repeat(gaussian(6, 4), 10, axis=0)
    choice = kmeans_plus_plus(x, 60, generator=seeded())
    assert len({pick // 10 for pick in choice.indices[:6].tolist()}) == 6
    assert (choice.gains[6:] == 0).all() and sorted(choice.indices.tolist()) == list(range(60))


@pytest.mark.parametrize("scale", [1e-30, 1e12])
def test_the_scale_changes_nothing(scale: float) -> None:
    x = gaussian(100, 4, dtype=np.float64)
    first, scaled = (kmeans_plus_plus(y, 20, generator=seeded()) for y in (x, x * scale))
    assert first.indices.tolist() == scaled.indices.tolist()
    np.testing.assert_allclose(scaled.gains, first.gains * scale, rtol=1e-4)


def test_rows_read_from_a_file_in_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = gaussian(1500, 8)
    expected = kmeans_plus_plus(x, 30, generator=seeded()).indices
    streamed(monkeypatch, "kmeans_plus_plus")
    assert kmeans_plus_plus(x, 30, generator=seeded()).indices.tolist() == expected.tolist()


@settings(max_examples=60, deadline=None)
@given(request=requests())
def test_properties(request: Request) -> None:
    check_choice(kmeans_plus_plus, request)


def test_what_cannot_be_done_is_told() -> None:
    check_refusals(kmeans_plus_plus)
    with pytest.raises(UserError, match="got 0 trials, allowed is 1 or more"):
        kmeans_plus_plus(gaussian(5, 2), 2, generator=seeded(), trials=0)
