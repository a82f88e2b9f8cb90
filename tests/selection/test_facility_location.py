"""Facility location: the picks of the plain greedy, its guarantee against every subset, and bounded work."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from selection.facility_location import Places, facility_location
from tests.selection.data import cosines, gaussian, seeded


def plain_greedy(similarity: np.ndarray, budget: int, already: tuple[int, ...] = ()) -> tuple[list[int], list[float]]:
    """Textbook greedy on the whole matrix."""
    chosen, gains = list(already), []
    best = similarity[:, chosen].max(axis=1) if chosen else np.zeros(len(similarity))
    for _ in range(budget):
        gain = np.maximum(similarity - best[:, None], 0).sum(axis=0)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        gains.append(float(gain.max()))
        best = np.maximum(best, similarity[:, chosen[-1]])
    return chosen[len(already) :], gains


@pytest.mark.parametrize("already", [(), (3, 17)])
def test_same_picks_and_gains_as_plain_greedy(already: tuple[int, ...]) -> None:
    x = gaussian(400, 8, dtype=np.float64)
    choice = facility_location(x, 40, already=already, generator=seeded(), epsilon=0.0)
    picks, gains = plain_greedy(cosines(x), 40, already)
    assert choice.indices.tolist() == picks
    np.testing.assert_allclose(choice.gains, gains, rtol=1e-3)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(3, 11), budget=st.integers(1, 3))
def test_value_is_within_the_guarantee_of_the_best_subset(seed: int, rows: int, budget: int) -> None:
    x = gaussian(rows, 3, seed)
    similarity = cosines(x)
    choice = facility_location(x, budget, generator=seeded(), epsilon=0.0)
    best = max(similarity[:, subset].max(axis=1).sum() for subset in combinations(range(rows), budget))
    value = similarity[:, choice.indices].max(axis=1).sum()
    assert value >= (1 - 1 / np.e) * best
    np.testing.assert_allclose(choice.gains.sum(), value, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 30), data=st.data())
def test_no_row_twice_whatever_the_data(rows: int, data: st.DataObject) -> None:
    x = np.array(data.draw(st.lists(st.integers(-1, 1), min_size=2 * rows, max_size=2 * rows)), np.float32).reshape(
        rows, 2
    )
    budget = data.draw(st.integers(1, rows))
    picks = facility_location(x, budget, generator=seeded()).indices.tolist()
    assert len(set(picks)) == budget and set(picks) <= set(range(rows))


def test_drawn_candidates_come_close_to_all_for_less_work(monkeypatch: pytest.MonkeyPatch) -> None:
    x, looked, gains = gaussian(800, 6), [0], Places.gains
    similarity = cosines(x)

    def counted(self: Places, candidates: np.ndarray) -> np.ndarray:
        looked[0] += len(candidates)
        return gains(self, candidates)

    monkeypatch.setattr(Places, "gains", counted)
    choice = facility_location(x, 80, generator=seeded())
    assert looked[0] <= 800 * np.log(100) + 80
    value, greedy = similarity[:, choice.indices].max(axis=1).sum(), sum(plain_greedy(similarity, 80)[1])
    assert 0.98 * greedy < value <= 1.001 * greedy
    assert len(set(choice.indices.tolist())) == 80


def test_with_more_rows_than_are_served_it_comes_close_to_all() -> None:
    x = gaussian(1500, 6) + 3 * gaussian(20, 6, 1)[np.random.default_rng(2).integers(20, size=1500)]
    similarity = cosines(x)
    values = {}
    for served in (1500, 500):
        choice = facility_location(x, 20, generator=seeded(), most_served=served)
        values[served] = similarity[:, choice.indices].max(axis=1).sum()
        assert choice.gains.sum() == pytest.approx(values[served], rel=0.02)
    random = similarity[:, np.random.default_rng(3).permutation(1500)[:20]].max(axis=1).sum()
    assert random < min(values.values())
    assert values[500] > 0.98 * values[1500]


def test_a_budget_that_is_too_large_is_told() -> None:
    with pytest.raises(UserError, match="got budget 5, allowed is 1 to 4"):
        facility_location(gaussian(4, 2), 5, generator=seeded())
    with pytest.raises(UserError, match="got epsilon 1.5"):
        facility_location(gaussian(4, 2), 2, generator=seeded(), epsilon=1.5)
