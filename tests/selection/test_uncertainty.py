"""Uncertainty of a pair: closed forms, and BALD against its definition as an expectation."""

import math
from functools import partial
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from selection.choice import Choice
from selection.uncertainty import MEASURES, MeasureName, bald, disagreement, margin_uncertainty, most_uncertain
from tests.selection.data import gaussian, seeded
from tests.selection.invariants import Request, check_choice, check_refusals, requests


def choose(x: np.ndarray, budget: int, *, margins: np.ndarray, measure: str = "bald") -> Choice:
    """`most_uncertain` with any word for a measure, as a file of settings may hold."""
    most = getattr(most_uncertain, "__wrapped__", most_uncertain)
    return most(x, budget, generator=seeded(), margins=margins, measure=cast(MeasureName, measure))


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


def test_measures_are_those_of_their_definitions_member_by_member() -> None:
    margins = gaussian(5, 40, dtype=np.float64) * 2
    chance = 1 / (1 + np.exp(-margins))

    def entropy(p: np.ndarray) -> np.ndarray:
        return -p * np.log(p) - (1 - p) * np.log(1 - p)

    expected = {
        "bald": entropy(chance.mean(axis=0)) - np.mean([entropy(p) for p in chance], axis=0),
        "disagreement": np.sqrt(((chance - chance.mean(axis=0)) ** 2).mean(axis=0)),
        "margin": 1 - 2 * np.abs(chance.mean(axis=0) - 0.5),
    }
    assert expected.keys() == MEASURES.keys()
    for measure, values in expected.items():
        choice = most_uncertain(
            gaussian(40, 3), 15, already=[2, 9], generator=seeded(), margins=margins, measure=cast(MeasureName, measure)
        )
        order = [index for index in np.argsort(-values).tolist() if index not in (2, 9)]
        assert choice.indices.tolist() == order[:15]
        np.testing.assert_allclose(choice.gains, values[order[:15]], atol=1e-12)
        first = choice.indices[0]
        assert choice.why[0] == f"{measure} {values[first]:.4g}, chance of the first {chance.mean(axis=0)[first]:.2f}"


def test_bald_asks_where_members_differ_and_margin_where_they_agree_on_a_tie() -> None:
    margins = np.array([[5.0, 0.1, 9.0], [-4.0, 0.1, 9.0]])
    assert choose(np.zeros((3, 1)), 3, margins=margins).indices.tolist() == [0, 1, 2]
    assert choose(np.zeros((3, 1)), 3, margins=margins, measure="disagreement").indices.tolist() == [0, 1, 2]
    assert choose(np.zeros((3, 1)), 1, margins=np.array([[5.0, 0.1, 9.0]]), measure="margin").indices.tolist() == [1]


@settings(max_examples=60, deadline=None)
@given(request=requests(), measure=st.sampled_from(list(MEASURES)))
def test_properties(request: Request, measure: MeasureName) -> None:
    margins = np.random.default_rng(request.seed).integers(-2, 3, size=(3, len(request.x))).astype(np.float32)
    choice = check_choice(partial(most_uncertain, margins=margins, measure=measure), request)
    assert (np.diff(choice.gains) <= 0).all()
    equal = np.diff(choice.gains) == 0
    assert (np.diff(choice.indices)[equal] > 0).all()  # of equals the lowest row first


def test_what_cannot_be_done_is_told() -> None:
    margins = gaussian(2, 10)
    check_refusals(partial(most_uncertain, margins=margins))
    x = gaussian(10, 3)
    with pytest.raises(UserError, match="unknown measure 'entropy': allowed are bald, disagreement, margin"):
        choose(x, 1, margins=margins, measure="entropy")
    with pytest.raises(UserError, match="got margins of 1 members on 10 pairs, allowed by 'bald' is 2 or more on 10"):
        choose(x, 1, margins=margins[:1])
    with pytest.raises(UserError, match="got margins of 2 members on 9 pairs"):
        choose(x, 1, margins=margins[:, 1:])
    margins[1, 4] = np.nan
    with pytest.raises(UserError, match="a member's margin of pair 4 is NaN"):
        choose(x, 1, margins=margins)
