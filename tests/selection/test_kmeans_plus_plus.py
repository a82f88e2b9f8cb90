"""k-means++: the chances of D² sampling, its guarantee, copies, and rows read from a file."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings

from selection.kmeans_plus_plus import kmeans_plus_plus
from tests.selection.data import distances, gaussian, seeded
from tests.selection.invariants import Request, check_choice, check_refusals, requests, streamed


def test_the_next_row_is_drawn_by_its_squared_distance() -> None:
    x = np.array([[0.0], [1.0], [2.0], [3.0], [3.0]])  # squared distances to row 0: 1, 4, 9, 9
    counts, generator = np.zeros(5), seeded()
    for _ in range(2300):
        counts[kmeans_plus_plus(x, 1, already=[0], generator=generator).indices[0]] += 1
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
        counts[tuple(kmeans_plus_plus(x, 2, generator=generator).indices)] += 1
    error = (counts - 4000 * expected) / np.sqrt(4000 * expected + 1e-9)
    assert (counts[expected == 0] == 0).all() and np.abs(error[expected > 0]).max() < 4.5


def test_squared_distances_stay_within_the_theorem_on_average() -> None:
    x = np.concatenate([gaussian(4, 2, seed) + [[9 * seed, 0]] for seed in range(3)])
    squared = distances(x) ** 2
    best = min(squared[:, subset].min(axis=1).sum() for subset in combinations(range(12), 3))
    costs = [squared[:, kmeans_plus_plus(x, 3, generator=seeded(i)).indices].min(axis=1).sum() for i in range(200)]
    assert best <= np.mean(costs) < 8 * (np.log(3) + 2) * best
    assert np.median(costs) < 3 * best  # what separates it from a uniform draw
    drawn = [squared[:, np.random.default_rng(i).permutation(12)[:3]].min(axis=1).sum() for i in range(200)]
    assert np.median(drawn) > 3 * best


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
