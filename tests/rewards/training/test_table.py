"""Judgements as tensors: their loss is the mean of each kind's own, and agreement is counted by hand."""

import math
from pathlib import Path

import pytest
import torch

from mmrlhf.data import Item, Pair
from mmrlhf.errors import UserError
from mmrlhf.losses import bradley_terry, ordinal, plackett_luce
from mmrlhf.outcomes import Outcome, Ranking, Rating
from mmrlhf.rewards.training.table import Objective, credits, outcome_loss, tabulate

A, B, C = Path("a"), Path("b"), Path("c")
MIXED: list[Outcome] = [
    Pair("p", A, B, 1.0, margin=0.5),
    Ranking("p", (A, B, C), (2.0, 1.0, 2.0)),
    Rating("p", C, 4),
    Pair("p", B, C, 0.5),
    Rating("p", A, 3),
]


def test_items_are_numbered_once() -> None:
    table, items = tabulate(MIXED)
    assert items == [Item("p", A), Item("p", B), Item("p", C)]
    assert table.items.tolist() == [[0, 1, -1], [0, 1, 2], [2, -1, -1], [1, 2, -1], [0, -1, -1]]
    assert table.levels == 5 and len(table) == 5
    with pytest.raises(UserError, match="have 2 and 5 levels"):
        tabulate([Rating("p", A, 1), Rating("p", B, 1, 2)])


def test_the_loss_of_a_mixture_is_the_weighted_mean() -> None:
    table, _ = tabulate(MIXED)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    weights = torch.rand(2, 5, generator=generator, dtype=torch.float64)
    thresholds = torch.tensor([-2.0, -0.5, 0.5, 2.0], dtype=torch.float64)
    found = outcome_loss(scores, table, torch.arange(5), weights, Objective(), thresholds=thresholds)
    total = 0.0
    for k in range(2):
        s, w = scores[k], weights[k]
        one, tie = torch.ones(1).double(), torch.full((1,), 0.5).double()
        ranks = torch.tensor([[2.0, 1.0, 2.0]], dtype=torch.float64)
        total += float(w[0] * bradley_terry(s[0:1, 0] - s[0:1, 1] - 0.5, one)[0])
        total += float(w[1] * plackett_luce(s[1:2], ranks)[0])
        total += float(w[2] * ordinal(s[2:3, 0], torch.tensor([4]), thresholds)[0])
        total += float(w[3] * bradley_terry(s[3:4, 0] - s[3:4, 1], tie)[0])
        total += float(w[4] * ordinal(s[4:5, 0], torch.tensor([3]), thresholds)[0])
    assert float(found) == pytest.approx(total / float(weights.sum()))
    reversed_rows = outcome_loss(scores.flip(1), table, torch.arange(4, -1, -1), weights.flip(1), Objective(),
                                 thresholds=thresholds)  # fmt: skip
    torch.testing.assert_close(found, reversed_rows)


def test_ties_as_an_outcome_of_their_own() -> None:
    table, _ = tabulate([Pair("p", A, B, 0.5), Pair("p", A, C, 1.0)])
    scores, weights = torch.tensor([[[0.3, 0.1], [1.0, 0.0]]]), torch.ones(1, 2)
    rows, tie = torch.arange(2), torch.tensor(0.7)
    found = outcome_loss(scores, table, rows, weights, Objective("davidson"), log_tie=tie)
    by_hand = 0.0
    for margin, said in ((0.2, "tie"), (1.0, "first")):
        terms = {"first": math.exp(margin / 2), "second": math.exp(-margin / 2), "tie": math.exp(0.7)}
        by_hand -= math.log(terms[said] / sum(terms.values())) / 2
    assert float(found) == pytest.approx(by_hand, rel=1e-5)
    assert float(outcome_loss(scores, table, rows, weights, Objective("rao-kupper"))) > 0


def test_agreement_by_hand() -> None:
    table, _ = tabulate(MIXED)
    scores = torch.tensor([[1.0, 0.0, 9.0], [0.5, 0.4, 0.3], [0.1, 9, 9], [2.0, 2.0, 9], [-0.5, 9, 9]])
    # the first wins; one of two pairs; 4 is above the middle of 5; a tie as a tie; 3 is the middle
    assert credits(scores, table, torch.arange(5)).tolist() == [1.0, 0.5, 1.0, 1.0, 0.5]
