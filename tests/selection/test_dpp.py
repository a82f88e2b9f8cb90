"""DPP: the picks of the greedy that computes every determinant, the determinant itself, quality, and copies."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from selection.dpp import dpp
from tests.selection.data import cosines, gaussian, seeded
from tests.selection.invariants import Request, check_choice, check_refusals, requests, streamed


def kernel(x: np.ndarray, quality: np.ndarray | None = None, ridge: float = 1e-3) -> np.ndarray:
    """L of the docstring, whole."""
    similarity = cosines(x.astype(np.float64)) + ridge * np.eye(len(x))
    return similarity if quality is None else quality[:, None] * similarity * quality


def plain_greedy(matrix: np.ndarray, budget: int, already: tuple[int, ...] = ()) -> tuple[list[int], list[float]]:
    """Every determinant of every candidate set, by LU."""
    chosen, gains = list(already), []
    value = np.linalg.slogdet(matrix[np.ix_(chosen, chosen)])[1] if chosen else 0.0
    for _ in range(budget):
        values = {}
        for index in set(range(len(matrix))) - set(chosen):
            subset = [*chosen, index]
            values[index] = np.linalg.slogdet(matrix[np.ix_(subset, subset)])[1]
        best = max(sorted(values), key=lambda index: round(values[index], 9))
        gains.append(values[best] - value)
        chosen.append(best)
        value = values[best]
    return chosen[len(already) :], gains


@pytest.mark.parametrize("already", [(), (3, 17)])
@pytest.mark.parametrize("columns", [4, 30])  # a budget beyond the rank, and within
def test_same_picks_and_gains_as_plain_greedy(columns: int, already: tuple[int, ...]) -> None:
    x = gaussian(60, columns)
    choice = dpp(x, 12, already=already, generator=seeded())
    picks, gains = plain_greedy(kernel(x), 12, already)
    assert choice.indices.tolist() == picks
    np.testing.assert_allclose(choice.gains, gains, atol=1e-3)


def test_quality_and_density_are_part_of_the_kernel() -> None:
    x, quality = gaussian(50, 10), np.random.default_rng(1).random(50) + 0.2
    choice = dpp(x, 10, generator=seeded(), quality=quality, density_weight=2.0)
    picks, gains = plain_greedy(kernel(x, quality * cosines(x).mean(axis=1) ** 2), 10)
    assert choice.indices.tolist() == picks
    np.testing.assert_allclose(choice.gains, gains, atol=1e-3)
    assert choice.indices[0] == (quality * cosines(x).mean(axis=1) ** 2).argmax()
    assert choice.indices.tolist() != dpp(x, 10, generator=seeded()).indices.tolist()


def test_orthogonal_rows_have_the_determinant_of_their_gram_matrix() -> None:
    x = np.eye(3, dtype=np.float32)
    gains = dpp(x, 3, generator=seeded(), ridge=1e-9).gains  # 1, ½ elsewhere: determinant (1 - ½)²(1 + 2·½) = ½
    assert np.exp(gains.sum()) == pytest.approx(0.5, abs=1e-6)
    assert np.exp(gains[:2].sum()) == pytest.approx(0.75, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(3, 9), budget=st.integers(1, 3))
def test_gains_sum_to_the_log_determinant_and_come_near_the_best(seed: int, rows: int, budget: int) -> None:
    x = gaussian(rows, 5, seed)
    matrix = kernel(x)
    choice = dpp(x, budget, generator=seeded())
    value = np.linalg.slogdet(matrix[np.ix_(choice.indices, choice.indices)])[1]
    best = max(np.linalg.slogdet(matrix[np.ix_(s, s)])[1] for s in combinations(range(rows), budget))
    assert choice.gains.sum() == pytest.approx(value, abs=1e-4)
    assert best - 2 * np.log(math.factorial(budget)) <= value + 1e-4  # Çivril & Magdon-Ismail 2009: volume within k!


def test_copies_come_after_everything_else() -> None:
    x = np.repeat(gaussian(6, 20), 10, axis=0)
    choice = dpp(x, 30, generator=seeded())
    assert choice.indices[:6].tolist() != list(range(6))
    assert sorted(choice.indices[:6].tolist()) == [0, 10, 20, 30, 40, 50]  # the lowest of each
    assert choice.gains[5] > -2 and choice.gains[6] < -5


def test_rows_read_from_a_file_in_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = gaussian(300, 8)
    expected = dpp(x, 20, generator=seeded()).indices
    streamed(monkeypatch, "dpp")
    assert dpp(x, 20, generator=seeded()).indices.tolist() == expected.tolist()


@settings(max_examples=60, deadline=None)
@given(request=requests())
def test_properties(request: Request) -> None:
    choice = check_choice(dpp, request)
    assert (np.diff(choice.gains) < 1e-3).all()  # log det is submodular


def test_what_cannot_be_done_is_told() -> None:
    check_refusals(dpp)
    with pytest.raises(UserError, match="got ridge 0.0"):
        dpp(gaussian(4, 2), 1, generator=seeded(), ridge=0.0)
    with pytest.raises(UserError, match="density_weight -1.0"):
        dpp(gaussian(4, 2), 1, generator=seeded(), density_weight=-1.0)
    with pytest.raises(UserError, match="quality of row 1 is 0, allowed is 1e-300 or more"):
        dpp(gaussian(2, 2), 1, generator=seeded(), quality=np.array([1.0, 0.0]))
