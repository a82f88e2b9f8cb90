"""Verdicts, Brier score and intervals of shares."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from mmrlhf.rewards.evaluation.measures import FEW_UNITS, brier, nll, share_interval, tie_credits, verdicts


def test_verdicts_and_credits_by_hand() -> None:
    p, labels = np.array([0.9, 0.54, 0.46, 0.1, 0.5]), np.array([1.0, 1.0, 0.0, 0.5, 0.5])
    assert verdicts(p, 0.1).tolist() == [1, 0.5, 0.5, 0, 0.5]
    assert verdicts(p, 0.0).tolist() == [1, 1, 0, 0, 0.5]
    assert tie_credits(p, labels, 0.1).tolist() == [1, 0.5, 0.5, 0.5, 1]


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 1)), min_size=1, max_size=20))
def test_the_likelihood_and_brier_score_are_those_of_the_probabilities(rows: list[tuple[float, float]]) -> None:
    margins, labels = np.array(rows).T.copy()
    p = 1 / (1 + np.exp(-margins))
    assert nll(margins, labels) == pytest.approx(-np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p)))
    assert brier(p, labels) == pytest.approx(sum((a - b) ** 2 for a, b in zip(p, labels, strict=True)) / len(rows))


def test_always_saying_a_half_costs_a_quarter() -> None:
    assert brier(np.full(4, 0.5), np.array([0.0, 1.0, 1.0, 0.0])) == 0.25


def test_share_interval() -> None:
    units = [f"p{i}" for i in range(200)]
    shares = np.arange(200.0) % 4 < 1
    low, high = share_interval(shares.astype(float), units, 0) or (0, 0)
    wilson = binomtest(50, 200).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((wilson.low, wilson.high), abs=0.015)
    assert share_interval(np.ones(20), units[: FEW_UNITS - 1] * 5, 0) is None


def test_shares_that_are_all_alike_have_the_exact_interval() -> None:
    units = [f"p{i // 2}" for i in range(20)]  # ten of them
    for value, successes in ((0.0, 0), (1.0, 10)):
        exact = binomtest(successes, 10).proportion_ci(method="exact")
        assert share_interval(np.full(20, value), units, 0) == pytest.approx([exact.low, exact.high])
