"""Judgements of any kind as rows of tensors, and their loss: what a reward is trained on, whatever gives its scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmrlhf.data import Item, Pair
from mmrlhf.errors import UserError
from mmrlhf.losses import (
    bradley_terry,
    davidson,
    ordinal,
    plackett_luce,
    rao_kupper,
    smooth_labels,
    with_margins,
)
from mmrlhf.outcomes import Outcome, Ranking, Rating, items_of

LossName = Literal["bradley-terry", "davidson", "rao-kupper"]
PAIR, RANKING, RATING = 0, 1, 2


@dataclass(frozen=True)
class OutcomeTable:
    """`n` judgements on up to `w` images each: which items (-1 where there is none) and what was said of them.

    `values` is a pair's label or a rating; `ranks` is NaN but for rankings; `levels` that of the ratings, 0 without any.
    """

    items: Int[Tensor, "n w"]
    kinds: Int[Tensor, " n"]
    values: Float[Tensor, " n"]
    margins: Float[Tensor, " n"]
    ranks: Float[Tensor, "n w"]
    levels: int

    def __len__(self) -> int:
        return len(self.kinds)


@dataclass(frozen=True)
class Objective:
    """Which loss pairs have, and how sure their labels are taken to be."""

    loss: LossName = "bradley-terry"
    label_smoothing: float = 0.0


def tabulate(outcomes: Sequence[Outcome]) -> tuple[OutcomeTable, list[Item]]:
    """The table of some judgements, and the different items that its rows number."""
    lists = [items_of(outcome) for outcome in outcomes]
    items = list(dict.fromkeys(item for own in lists for item in own))
    number = {item: i for i, item in enumerate(items)}
    width = max(2, *map(len, lists))  # of a pair at least
    rows = torch.full((len(outcomes), width), -1)
    ranks = torch.full((len(outcomes), width), math.nan)
    kinds, values, margins = torch.zeros(len(outcomes), dtype=torch.long), *torch.zeros(2, len(outcomes))
    for i, (outcome, own) in enumerate(zip(outcomes, lists, strict=True)):
        rows[i, : len(own)] = torch.tensor([number[item] for item in own])
        if isinstance(outcome, Pair):
            values[i], margins[i] = outcome.label_0, outcome.margin
        elif isinstance(outcome, Ranking):
            kinds[i], ranks[i, : len(own)] = RANKING, torch.tensor(outcome.ranks)
        else:
            kinds[i], values[i] = RATING, outcome.rating
    return OutcomeTable(rows, kinds, values, margins, ranks, levels_of(outcomes)), items


def levels_of(outcomes: Sequence[Outcome]) -> int:
    """The number of levels of the ratings among them, 0 without any. UserError where they differ."""
    found = sorted({outcome.levels for outcome in outcomes if isinstance(outcome, Rating)})
    if len(found) > 1:
        raise UserError(
            f"ratings by one criterion have {' and '.join(map(str, found))} levels: bring them to one scale, or name "
            "another criterion"
        )
    return found[0] if found else 0


def outcome_loss(
    scores: Float[Tensor, "k b w"],
    table: OutcomeTable,
    rows: Int[Tensor, " b"],
    weights: Float[Tensor, "k b"],
    objective: Objective,
    *,
    thresholds: Float[Tensor, " levels_less_1"] | None = None,
    log_tie: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """The weighted mean loss of some rows of the table over `k` scorers; `scores` may hold anything finite where no item is."""
    kinds, total = table.kinds[rows], scores.new_zeros(())
    whole = weights.sum()
    for kind in kinds.unique().tolist():
        own = kinds == kind
        part, own_weights = rows[own], weights[:, own].flatten()
        given, members = scores[:, own], len(scores)
        if kind == PAIR:
            margins, labels = (given[..., 0] - given[..., 1]).flatten(), table.values[part].repeat(members).to(given)
            margins = with_margins(margins, labels, table.margins[part].repeat(members).to(given))
            loss = pair_loss(margins, smooth_labels(labels, objective.label_smoothing), own_weights, objective, log_tie)
        elif kind == RANKING:
            ranks = table.ranks[part].repeat(members, 1).to(given)
            loss = plackett_luce(given.flatten(0, 1), ranks, own_weights)[0]
        else:
            assert thresholds is not None, "ratings need thresholds"
            ratings = table.values[part].long().repeat(members).to(given.device)
            loss = ordinal(given[..., 0].flatten(), ratings, thresholds, own_weights)[0]
        total = total + loss * (own_weights.sum() / whole)
    return total


def pair_loss(
    margins: Float[Tensor, " b"],
    labels: Float[Tensor, " b"],
    weights: Float[Tensor, " b"],
    objective: Objective,
    log_tie: Float[Tensor, ""] | None,
) -> Float[Tensor, ""]:
    """The loss that `objective` names; Davidson's has a trained parameter, `log_tie`."""
    if objective.loss == "bradley-terry":
        return bradley_terry(margins, labels, weights)[0]
    if objective.loss == "rao-kupper":
        return rao_kupper(margins, labels, weights=weights)[0]
    assert log_tie is not None, "Davidson's loss needs log_tie"
    return davidson(margins, labels, log_tie, weights)[0]


def credits(scores: Float[Tensor, "b w"], table: OutcomeTable, rows: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Agreement of each judgement with the scores, by pairs of its items: 1, ½ where one of both is a tie, else 0.

    A ranking gets the mean over its strict pairs; a rating the middle of its scale for a tie (scores are 0 there), so that
    a veto counts as found where its score is below 0.
    """
    kinds, values = table.kinds[rows], table.values[rows].to(scores)
    found = torch.empty(len(rows), dtype=scores.dtype)
    pair = kinds == PAIR
    found[pair] = credit(scores[pair, 0] - scores[pair, 1], values[pair] - 0.5)
    rating = kinds == RATING
    found[rating] = credit(scores[rating, 0], values[rating] - (table.levels + 1) / 2)
    ranks = table.ranks[rows].to(scores)
    for i in (kinds == RANKING).nonzero().flatten().tolist():
        own = (~ranks[i].isnan()).nonzero().flatten()
        first, second = own[torch.combinations(torch.arange(len(own)))].unbind(1)
        differ = ranks[i, first] != ranks[i, second]
        gaps = scores[i, first] - scores[i, second]
        found[i] = credit(gaps, ranks[i, second] - ranks[i, first])[differ].mean()
    return found


def credit(found: Float[Tensor, " b"], said: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """1 where both have one sign, ½ where exactly one is 0, else 0."""
    return 1 - (found.sign() - said.sign()).abs() / 2
