"""Uncertainty of a pair: closed forms, and BALD against its definition as an expectation."""

import math

import pytest
import torch

from selection.uncertainty import bald, disagreement, margin_uncertainty


def test_bald_is_zero_where_the_members_agree_even_on_a_tie() -> None:
    margins = torch.tensor([[0.0, 3.0, -40.0]]).expand(5, 3)
    assert bald(margins).tolist() == pytest.approx([0, 0, 0], abs=1e-7)


def test_bald_is_log_2_where_half_is_sure_of_each_side() -> None:
    assert float(bald(torch.tensor([[60.0], [-60.0]]))) == pytest.approx(math.log(2))


def test_bald_equals_the_mutual_information_of_answer_and_member() -> None:
    margins = torch.randn(4, 10, generator=torch.Generator().manual_seed(0)) * 2
    p = torch.sigmoid(margins.double())
    joint = torch.stack([p, 1 - p]) / 4  # answer, member, pair
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    information = (joint * (joint / independent).log()).sum((0, 1))
    assert torch.allclose(bald(margins).double(), information, atol=1e-6)


def test_swapping_the_items_of_a_pair_changes_nothing() -> None:
    margins = torch.randn(6, 20, generator=torch.Generator().manual_seed(1))
    for measure in (bald, margin_uncertainty, disagreement):
        assert torch.allclose(measure(margins), measure(-margins), atol=1e-6)


def test_margin_uncertainty_and_disagreement() -> None:
    margins = torch.tensor([[0.0, 50.0, 50.0], [0.0, 50.0, -50.0]])
    assert margin_uncertainty(margins).tolist() == pytest.approx([1, 0, 1], abs=1e-6)
    assert disagreement(margins).tolist() == pytest.approx([0, 0, 0.5], abs=1e-6)
