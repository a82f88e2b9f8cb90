"""How well chosen rows cover all rows: the distance from each row to the nearest chosen one."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from jaxtyping import Float64, Int

from mmrlhf.errors import UserError
from selection.rows import Rows, nearest_squared, squared_norms
from selection.stacked import Matrix

CENTRES_AT_ONCE = 256


class Coverage(TypedDict):
    """Largest and mean Euclidean distance to the nearest chosen row, and over how many rows they were measured."""

    radius: float
    mean_distance: float
    rows_measured: int


def coverage(embeddings: Matrix, chosen: Sequence[int], *, most_rows: int = 100_000) -> Coverage:
    """Over all rows, or over `most_rows` evenly spaced ones where there are more."""
    if len(chosen) == 0:
        raise UserError("no row is chosen: there is no distance to the nearest")
    rows = Rows(embeddings)
    distance = nearest_distance(rows, chosen, evenly(len(rows), most_rows)) / rows.scale
    return {"radius": float(distance.max()), "mean_distance": float(distance.mean()), "rows_measured": len(distance)}


def evenly(count: int, most: int) -> Int[np.ndarray, " m"]:
    """All row numbers, or `most` evenly spaced ones."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)


def nearest_distance(rows: Rows, chosen: Sequence[int], measured: Int[np.ndarray, " m"]) -> Float64[np.ndarray, " m"]:
    """Distance of each measured row to the nearest chosen one, in the scale of `rows`; exactly 0 on the chosen."""
    distance = np.empty(len(measured))
    picks = np.asarray(chosen, dtype=np.int64)
    for start in range(0, len(measured), 8192):
        numbers = measured[start : start + 8192]
        part = rows[numbers]
        norms, nearest = squared_norms(part), np.full(len(numbers), np.inf, np.float32)
        for first in range(0, len(picks), CENTRES_AT_ONCE):
            centres = rows[picks[first : first + CENTRES_AT_ONCE]]
            nearest = np.minimum(nearest, nearest_squared(part, norms, centres, squared_norms(centres)))
        distance[start : start + len(numbers)] = np.sqrt(nearest.astype(np.float64))
    distance[np.isin(measured, picks)] = 0
    return distance
