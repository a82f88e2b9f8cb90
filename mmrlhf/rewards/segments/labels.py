"""Labels on spans of sequences, and comparisons of whole sequences, as checked tensors: what a segment reward learns from."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from mmrlhf.errors import UserError
from mmrlhf.segments import TAGS


class SpanLabel(NamedTuple):
    """What somebody said of the positions [start, end) of sequence `row`: a tag (see `SegmentLabel`), or a score."""

    row: int
    start: int
    end: int
    value: str | float
    weight: float = 1.0


class SequencePair(NamedTuple):
    """Two whole sequences compared; `label` is the weight of the first in [0, 1], 0.5 a tie."""

    row_0: int
    row_1: int
    label: float
    weight: float = 1.0


@dataclass(frozen=True)
class LabelTable:
    """`n` labels on spans (row, start, end), and `m` comparisons of two rows.

    `ratings` are 0 for a score, else the place of the tag from misleading, 1, over irrelevant to correct, which is the last of
    `levels`: 3, or 2 where nothing was called irrelevant. `scores` are NaN for a tag.
    """

    spans: Int[Tensor, "n 3"]
    ratings: Int[Tensor, " n"]
    scores: Float[Tensor, " n"]
    weights: Float[Tensor, " n"]
    pairs: Int[Tensor, "m 2"]
    outcomes: Float[Tensor, " m"]
    pair_weights: Float[Tensor, " m"]
    levels: int

    def __len__(self) -> int:
        return len(self.spans) + len(self.pairs)

    def part(self, spans: Bool[Tensor, " n"], pairs: Bool[Tensor, " m"]) -> "LabelTable":
        """Only these labels and comparisons."""
        return LabelTable(
            self.spans[spans], self.ratings[spans], self.scores[spans], self.weights[spans], self.pairs[pairs],
            self.outcomes[pairs], self.pair_weights[pairs], self.levels,
        )  # fmt: skip

    def of(self, rows: Int[Tensor, " b"]) -> "LabelTable":
        """The labels on these rows, and the comparisons whose first row is among them."""
        return self.part(torch.isin(self.spans[:, 0], rows), torch.isin(self.pairs[:, 0], rows))


def tabulate_labels(spans: Sequence[SpanLabel], pairs: Sequence[SequencePair], mask: Bool[Tensor, "b t"]) -> LabelTable:
    """The table of some labels on sequences whose positions `mask` tells.

    UserError for a row, span, tag, score, label or weight that is not allowed, and where all labels say the same.
    """
    for i, span in enumerate(spans):
        check_span(span, mask, f"span label {i} ({span.row}, {span.start}, {span.end})")
    for i, pair in enumerate(pairs):
        check_pair(pair, mask, f"comparison {i} ({pair.row_0}, {pair.row_1})")
    refuse_monotony(spans, pairs)
    levels = 3 if any(span.value == "irrelevant" for span in spans) else 2
    places = {"misleading": 1, "irrelevant": 2, "correct": levels}
    return LabelTable(
        torch.tensor([span[:3] for span in spans], dtype=torch.long).reshape(-1, 3),
        torch.tensor([places[v] if isinstance(v := span.value, str) else 0 for span in spans], dtype=torch.long),
        torch.tensor([math.nan if isinstance(v := span.value, str) else float(v) for span in spans]),
        torch.tensor([float(span.weight) for span in spans]),
        torch.tensor([pair[:2] for pair in pairs], dtype=torch.long).reshape(-1, 2),
        torch.tensor([float(pair.label) for pair in pairs]),
        torch.tensor([float(pair.weight) for pair in pairs]),
        levels,
    )


def check_span(span: SpanLabel, mask: Bool[Tensor, "b t"], where: str) -> None:
    """UserError for a label that is not allowed."""
    count, length = mask.shape
    if not 0 <= span.row < count or not 0 <= span.start < span.end <= length:
        raise UserError(
            f"{where} is outside: allowed are rows from 0 to {count - 1} and 0 <= start < end <= {length} positions"
        )
    if not mask[span.row, span.start : span.end].any():
        raise UserError(f"{where} covers padding only: give positions that the mask says are there")
    if isinstance(span.value, str):
        if span.value not in TAGS:
            raise UserError(f"{where} got the tag '{span.value}', allowed are {', '.join(TAGS)}, or a score")
    elif not math.isfinite(span.value):
        raise UserError(f"{where} got the score {span.value}, allowed is a finite number")
    check_weight(span.weight, where)


def check_pair(pair: SequencePair, mask: Bool[Tensor, "b t"], where: str) -> None:
    """UserError for a comparison that is not allowed."""
    if not all(0 <= row < len(mask) and mask[row].any() for row in pair[:2]) or pair.row_0 == pair.row_1:
        raise UserError(f"{where} needs two different rows from 0 to {len(mask) - 1} that are not padding alone")
    if not 0 <= pair.label <= 1:
        raise UserError(f"{where} got the label {pair.label}, allowed is 0 to 1: the weight of the first")
    check_weight(pair.weight, where)


def check_weight(weight: float, where: str) -> None:
    if not 0 < weight < math.inf:
        raise UserError(f"{where} got the weight {weight}, allowed is a finite number above 0")


def refuse_monotony(spans: Sequence[SpanLabel], pairs: Sequence[SequencePair]) -> None:
    """UserError where there is nothing to learn: no label, or nothing but one tag or one score, and ties."""
    said = {span.value for span in spans}
    if len(said) < 2 and all(pair.label == 0.5 for pair in pairs):
        told = [f"the label {value!r}" for value in said] + ["ties"] * bool(pairs)
        got = f"only {' and '.join(told)}" if told else "no label"
        raise UserError(
            f"a segment reward got {got}: give spans of another tag or score too, or comparisons (where annotators mark only "
            "what is wrong, mmrlhf.segments.with_rest labels the rest)"
        )


def hold_out(
    table: LabelTable, count: int, groups: Sequence[Hashable] | None, fraction: float, seed: int
) -> Bool[Tensor, " rows"]:
    """Which of `count` rows are held out: about `fraction` of the labelled ones, compared rows and rows of a group together.

    None where `fraction` is 0 or there are fewer than 5 such families to choose from.
    """
    family = families(table, count, groups)
    labelled = torch.cat([table.spans[:, 0], table.pairs.flatten()]).unique()
    known = np.unique(family[labelled.numpy()])
    wanted = min(max(1, round(fraction * len(known))), len(known) - 1)  # one is left to learn from
    if fraction == 0 or len(known) < 5:
        wanted = 0
    chosen = np.random.default_rng(seed).permutation(known)[:wanted]
    return torch.from_numpy(np.isin(family, chosen))


def families(table: LabelTable, count: int, groups: Sequence[Hashable] | None) -> Int[np.ndarray, " rows"]:
    """A number for each row, the same for rows that are compared with each other or are of one group."""
    first, second = (table.pairs[:, side].tolist() for side in (0, 1))
    if groups is not None:
        if len(groups) != count:
            raise UserError(f"got {len(groups)} groups for {count} sequences: give one a sequence")
        founder: dict[Hashable, int] = {}
        second = second + [founder.setdefault(group, row) for row, group in enumerate(groups)]
        first = first + list(range(count))
    edges = coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
    return connected_components(edges, directed=False)[1].astype(np.int64)
