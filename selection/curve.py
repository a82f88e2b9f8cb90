"""How coverage improves with each pick, next to random picks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int

from selection.coverage import evenly, nearest_distance
from selection.random_choice import random_choice
from selection.rows import Rows
from selection.stacked import Matrix

MOST_ROWS, MOST_POINTS, RANDOM_SEEDS = 5_000, 60, 5


class Curve(NamedTuple):
    """After so many picks, the mean distance of the rows to the nearest chosen one, and the largest."""

    picks: Int[np.ndarray, " k"]
    mean: Float64[np.ndarray, " k"]
    radius: Float64[np.ndarray, " k"]


def coverage_curve(
    rows: Rows,
    chosen: Sequence[int],
    already: Sequence[int],
    *,
    most_rows: int = MOST_ROWS,
    most_points: int = MOST_POINTS,
) -> Curve:
    """From 1 pick to all, at `most_points` places at most, over all rows or `most_rows` evenly spaced ones."""
    measured = evenly(len(rows), most_rows)
    points = np.unique(np.linspace(1, len(chosen), min(most_points, len(chosen))).round().astype(np.int64))
    nearest = nearest_distance(rows, already, measured) if len(already) else np.full(len(measured), np.inf)
    means, radii = [], []
    before = 0
    for upto in points.tolist():
        nearest = np.minimum(nearest, nearest_distance(rows, chosen[before:upto], measured))
        means.append(nearest.mean() / rows.scale)
        radii.append(nearest.max() / rows.scale)
        before = upto
    return Curve(points, np.array(means), np.array(radii))


def random_curves(rows: Rows, budget: int, already: Sequence[int], seed: int, count: int = RANDOM_SEEDS) -> list[Curve]:
    """The same of `count` random choices of `budget` rows."""
    return [
        coverage_curve(rows, draw(rows.source, budget, already, seed + 1_000_003 + number), already)
        for number in range(count)
    ]


def draw(embeddings: Matrix, budget: int, already: Sequence[int], seed: int) -> list[int]:
    """The rows of one random choice."""
    generator = torch.Generator().manual_seed(seed)
    return random_choice(embeddings, budget, already=already, generator=generator).indices.tolist()
