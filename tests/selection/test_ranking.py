"""Ranks with ties, checked values, products that give copies the same, and proportional draws."""

import numpy as np
import pytest
import torch

from mmrlhf.errors import UserError
from selection.ranking import all_products, best, check_values, draw_proportional, products
from selection.rows import Rows
from tests.selection.data import gaussian, seeded


def test_best_is_the_highest_first_and_of_equals_the_lowest_row() -> None:
    scores = np.array([1.0, 3.0, 2.0, 3.0, -np.inf, 1.0])
    assert best(scores, 4, [2]).tolist() == [1, 3, 0, 5]
    assert best(scores, 6, []).tolist() == [1, 3, 2, 0, 5, 4]


def test_values_are_one_a_row_finite_and_high_enough() -> None:
    assert check_values("worth", np.array([1, -2], np.int64), 2).dtype == np.float64
    with pytest.raises(UserError, match="got 2 values of worth for 3 rows"):
        check_values("worth", np.array([1.0, 2.0]), 3)
    with pytest.raises(UserError, match="worth of row 1 is nan, allowed is any finite number"):
        check_values("worth", np.array([1.0, np.nan]), 2)
    with pytest.raises(UserError, match="worth of row 0 is -1, allowed is 0 or more"):
        check_values("worth", np.array([-1.0, 2.0]), 2, 0.0)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [1, 5, 37, 512])
def test_copies_have_exactly_the_same_product(kind: type, columns: int) -> None:
    rows, vector = np.tile(gaussian(1, columns), (1003, 1)), gaussian(1, columns, 1, kind)[0]
    values = products(rows[2:], vector)
    assert len(set(values.tolist())) == 1 and values.dtype == kind
    assert values[0] == pytest.approx(float(rows[0].astype(np.float64) @ vector), rel=1e-4)


def test_all_products_read_the_rows_in_blocks() -> None:
    x, vector = gaussian(20_000, 3), gaussian(1, 3, 1, np.float64)[0]
    rows = Rows(x, unit=True, keep_bytes=0)
    expected = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ vector
    np.testing.assert_allclose(all_products(rows, vector), expected, atol=1e-6)


def test_draws_have_chances_proportional_to_the_weights() -> None:
    weights, generator = np.array([0.0, 1.0, 0.0, 3.0, 4.0, 0.0]), seeded()
    counts = np.bincount([draw_proportional(weights, generator) for _ in range(4000)], minlength=6)
    assert counts[[0, 2, 5]].sum() == 0
    assert (np.abs(counts[[1, 3, 4]] - [500, 1500, 2000]) < 140).all()  # 4.4 standard deviations


@pytest.mark.parametrize("draw", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_range_never_draw_a_weight_of_zero(draw: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda count, **_: torch.full((count,), draw, dtype=torch.double))
    assert draw_proportional(np.array([0.0, 0.1, 0.2, 0.0]), seeded()) == (1 if draw == 0 else 2)
    assert draw_proportional(np.array([0.0, 5e-324, 0.0]), seeded()) == 1
