"""Sequences whose positions are worth a planted linear function of their features, and labels that tell of it with noise."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmrlhf.rewards.segments.labels import SequencePair, SpanLabel

FEATURES, LENGTH = 6, 8
WORTH = torch.tensor([2.0, -1.5, 1.0, 0.0, 0.0, 0.5])


@dataclass(frozen=True)
class Planted:
    """Features [b, t, f] of sequences of 4 to 8 positions, and what each position is worth, [b, t]."""

    features: Tensor
    mask: Tensor
    worth: Tensor

    def totals(self) -> list[float]:
        return (self.worth * self.mask).sum(1).tolist()


def planted(count: int, seed: int) -> Planted:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, LENGTH, FEATURES, generator=generator)
    lengths = torch.randint(4, LENGTH + 1, (count,), generator=generator)
    return Planted(features, torch.arange(LENGTH) < lengths.unsqueeze(1), features @ WORTH)


def span_values(data: Planted, seed: int, noise: float = 0.5) -> list[tuple[int, int, int, float]]:
    """Two spans of one to three positions a sequence, with the mean of what they are worth, seen with noise."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for row, length in enumerate(data.mask.sum(1).tolist()):
        for _ in range(2):
            start = int(torch.randint(length, (), generator=generator))
            end = min(length, start + 1 + int(torch.randint(3, (), generator=generator)))
            error = noise * float(torch.randn((), generator=generator))
            found.append((row, start, end, float(data.worth[row, start:end].mean()) + error))
    return found


def scores(data: Planted, seed: int = 0) -> list[SpanLabel]:
    return [SpanLabel(row, start, end, 50 + 10 * value) for row, start, end, value in span_values(data, seed)]


def tags(data: Planted, seed: int = 0) -> list[SpanLabel]:
    def name(value: float) -> str:
        return "correct" if value > 0.8 else "irrelevant" if value > -0.8 else "misleading"

    return [SpanLabel(row, start, end, name(value)) for row, start, end, value in span_values(data, seed)]


def comparisons(data: Planted, seed: int = 0, each: int = 3) -> list[SequencePair]:
    """Each sequence with `each` others, the winner by the sums of what they are worth, seen with noise."""
    generator, totals = torch.Generator().manual_seed(seed), data.totals()
    found = []
    for row in range(len(totals)):
        for step in (1 + torch.randperm(len(totals) - 1, generator=generator)[:each]).tolist():
            other = (row + step) % len(totals)
            margin = totals[row] - totals[other] + float(torch.randn((), generator=generator))
            found.append(SequencePair(row, other, float(margin > 0)))
    return found
