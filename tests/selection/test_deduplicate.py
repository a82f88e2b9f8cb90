"""Near-duplicates: the plain algorithm over all pairs, order and worth, blocks, exact copies and rows of zeros."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from selection import deduplicate as module
from selection.deduplicate import deduplicate, distinct
from selection.rows import Rows
from tests.selection.data import cosines, gaussian, seeded
from tests.selection.invariants import Request, check_choice, check_refusals, requests


def plain_cosines(x: np.ndarray) -> np.ndarray:
    """All of them; rows of zeros are like one another."""
    cosine = 2 * cosines(x.astype(np.float64)) - 1
    empty = np.flatnonzero(~x.any(axis=1))
    cosine[np.ix_(empty, empty)] = 1
    cosine[np.ix_(empty, x.any(axis=1))] = cosine[np.ix_(x.any(axis=1), empty)] = 0
    return cosine


def plain(x: np.ndarray, threshold: float, order: list[int], already: tuple[int, ...] = ()) -> list[int]:
    """One row after another against all kept."""
    cosine, kept = plain_cosines(x), list(already)
    for index in order:
        if index not in already and all(cosine[index, other] < threshold - 1e-6 for other in kept):
            kept.append(index)
    return kept[len(already) :]


@pytest.mark.parametrize(("block", "at_once"), [(1024, 8192), (7, 5), (1, 1)])
@pytest.mark.parametrize("threshold", [0.5, 0.9, 1.0])
def test_same_as_the_plain_algorithm(
    block: int, at_once: int, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(module, "KEPT_AT_ONCE", at_once)
    x = np.concatenate([gaussian(80, 3), gaussian(40, 3) * np.float32(2), np.zeros((3, 3), np.float32)])
    worth = np.random.default_rng(2).integers(5, size=123).astype(np.float64)
    order = np.lexsort((np.arange(123), -worth)).tolist()
    assert distinct(x, threshold=threshold).kept.tolist() == plain(x, threshold, list(range(123)))
    found = distinct(x, threshold=threshold, worth=worth, already=[5, 90])
    assert found.kept.tolist() == plain(x, threshold, order, (5, 90))
    cosine, kept = plain_cosines(x), [5, 90, *found.kept.tolist()]
    for index, original in enumerate(found.copy_of.tolist()):
        alike = [other for other in kept if cosine[index, other] >= threshold - 1e-6]
        assert original == (-1 if index in kept else alike[0])


def test_exact_copies_and_scaled_ones_are_found_at_threshold_1() -> None:
    x = gaussian(50, 40)
    found = distinct(np.concatenate([x, x, 3 * x]), threshold=1.0)
    assert found.kept.tolist() == list(range(50))
    assert found.copy_of.tolist() == [-1] * 50 + list(range(50)) * 2


def test_the_first_by_worth_is_kept_and_is_the_gain() -> None:
    x = np.array([[1.0, 0], [1, 0.01], [0, 1], [0.01, 1]])
    choice = deduplicate(x, 2, generator=seeded(), worth=np.array([1.0, 5.0, 3.0, 2.0]))
    assert choice.indices.tolist() == [1, 2] and choice.gains.tolist() == [5.0, 3.0]
    assert deduplicate(x, 2, generator=seeded()).indices.tolist() == [0, 2]
    assert deduplicate(x, 1, already=[1], generator=seeded()).indices.tolist() == [2]


def test_it_ends_when_the_budget_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, compare = [0], module.compare

    def counted(rows: Rows, block: np.ndarray, centres: list[int], least: float) -> np.ndarray:
        seen[0] += len(block)
        return compare(rows, block, centres, least)

    monkeypatch.setattr(module, "BLOCK", 10)
    monkeypatch.setattr(module, "compare", counted)
    assert deduplicate(np.eye(100, dtype=np.float32), 15, generator=seeded()).indices.tolist() == list(range(15))
    assert seen == [20]


@settings(max_examples=60, deadline=None)
@given(request=requests(), threshold=st.sampled_from([0.3, 0.8, 1.0]))
def test_properties(request: Request, threshold: float) -> None:
    known = tuple(dict.fromkeys(request.already))
    expected = plain(request.x, threshold, list(range(len(request.x))), known)
    if request.budget > len(expected):
        with pytest.raises(UserError, match=f"allowed is 1 to {len(expected)}: no more rows have a cosine below"):
            deduplicate(request.x, request.budget, already=known, generator=seeded(), threshold=threshold)
        return
    choice = check_choice(lambda *args, **options: deduplicate(*args, **options, threshold=threshold), request)
    assert choice.indices.tolist() == expected[: request.budget]


def test_what_cannot_be_done_is_told() -> None:
    check_refusals(deduplicate)
    for threshold in (0.0, 1.1, np.nan):
        with pytest.raises(UserError, match=f"got threshold {threshold}"):
            distinct(gaussian(4, 2), threshold=float(threshold))
    with pytest.raises(UserError, match="got 3 values of worth for 4 rows"):
        distinct(gaussian(4, 2), threshold=0.9, worth=np.ones(3))
