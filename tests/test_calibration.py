"""Calibration error and reliability curve against loops, hand counts and what must always hold."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.calibration import ece, reliability_curve
from mmrlhf.errors import UserError


def test_by_hand() -> None:
    # 0.9 three times (two wins) and mirrored 0.1: both bins are off by 0.9 − 2/3
    assert ece([0.9, 0.9, 0.9], [1.0, 1.0, 0.0]) == pytest.approx(0.9 - 2 / 3)
    assert [tuple(entry) for entry in reliability_curve([0.9, 0.9, 0.9], [1.0, 1.0, 0.0])] == [
        (pytest.approx(0.1), pytest.approx(1 / 3), 3),
        (pytest.approx(0.9), pytest.approx(2 / 3), 3),
    ]


def test_ties_and_certainty() -> None:
    assert ece([0.5, 0.5], [0.5, 0.5]) == 0
    assert ece([1.0, 0.0], [1.0, 0.0]) == 0
    assert ece([1.0, 0.0], [0.0, 1.0]) == 1


def test_against_a_plain_loop_over_both_orders() -> None:
    generator = np.random.default_rng(0)
    p, y = generator.random(200), generator.choice([0.0, 0.5, 1.0], 200)
    both = [*zip(p, y, strict=True), *zip(1 - p, 1 - y, strict=True)]
    expected = 0.0
    for low in range(15):
        own = [(a, b) for a, b in both if low / 15 <= a < (low + 1) / 15]
        if own:
            expected += abs(sum(a for a, _ in own) - sum(b for _, b in own)) / len(both)
    assert ece(p, y) == pytest.approx(expected)
    assert ece(torch.tensor(p), torch.tensor(y)) == pytest.approx(expected)


def test_half_the_bins_on_confidence_give_the_same_figure() -> None:
    """Guo et al.'s own definition (confidence against accuracy), with as many bins as the upper half has."""
    generator = np.random.default_rng(1)
    p = generator.random(500)
    y = (generator.random(500) < p).astype(float)
    confidence, right = np.maximum(p, 1 - p), np.where(p > 0.5, y, 1 - y)
    bins = np.minimum(((confidence - 0.5) * 16).astype(int), 7)
    guo = sum(abs(confidence[bins == b].sum() - right[bins == b].sum()) for b in range(8)) / 500
    assert ece(p, y, bins=16) == pytest.approx(guo)


def test_true_probabilities_are_calibrated_and_sharpened_ones_are_not() -> None:
    generator = np.random.default_rng(2)
    p = generator.random(20_000)
    y = (generator.random(20_000) < p).astype(float)
    sharper = p**3 / (p**3 + (1 - p) ** 3)
    assert ece(p, y) < 0.02
    assert ece(sharper, y) > 0.1


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=30))
def test_which_item_is_called_first_changes_nothing(rows: list[tuple[float, float]]) -> None:
    p, y = (np.array(part) for part in zip(*rows, strict=True))
    figure = ece(p, y)
    assert 0 <= figure <= 1 + 1e-12
    flip = np.arange(len(p)) % 2 == 0
    edges = np.abs(p * 15 - np.round(p * 15)) < 1e-9  # on an edge the two orders may fall into neighbouring bins
    if not edges.any():
        assert ece(np.where(flip, 1 - p, p), np.where(flip, 1 - y, y)) == pytest.approx(figure)
    assert sum(entry.size for entry in reliability_curve(p, y)) == 2 * len(p)


def test_what_it_does_not_take() -> None:
    with pytest.raises(UserError, match="probabilities got 1.5, allowed is"):
        ece([1.5], [1.0])
    with pytest.raises(UserError, match="labels got nan"):
        ece([0.5], [float("nan")])
    with pytest.raises(UserError, match="probabilities got no value"):
        ece([], [])
    with pytest.raises(UserError, match="got 2 probabilities and 1 labels"):
        ece([0.5, 0.5], [1.0])
    with pytest.raises(UserError, match="bins got 0"):
        ece([0.5], [1.0], bins=0)
