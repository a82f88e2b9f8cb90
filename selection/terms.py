"""Preferences of a combination: what each strategy adds, a gain in [0, 1] of every candidate."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64, Int

from selection.coverage import evenly
from selection.kmeans_plus_plus import lower
from selection.recipe import Diversity
from selection.rows import Rows, squared_norms

MOST_REFERENCES = 10_000


@runtime_checkable
class Term(Protocol):
    """A preference: gains in [0, 1], weighted by `strength`."""

    name: str
    strength: float

    def gains(self, pool: Int[np.ndarray, " p"]) -> Float64[np.ndarray, " p"]: ...

    def take(self, index: int) -> None:
        """Count a row as chosen."""

    def detail(self, index: int) -> str:
        """What the gain of a row was made of, asked before it is taken."""


class Fixed:
    """A preference that no pick changes: one number a row, scaled to [0, 1] over the candidates `pool` by range or rank."""

    def __init__(
        self,
        name: str,
        words: str,
        strength: float,
        values: Float64[np.ndarray, " n"],
        pool: Int[np.ndarray, " p"],
        scale: str = "range",
    ):
        self.name, self.words, self.strength, self.values = name, words, strength, values
        self.scaled = np.zeros(len(values))
        self.scaled[pool] = by_rank(values[pool]) if scale == "rank" else by_range(values[pool])

    def gains(self, pool: Int[np.ndarray, " p"]) -> Float64[np.ndarray, " p"]:
        return self.scaled[pool]

    def take(self, index: int) -> None:
        pass

    def detail(self, index: int) -> str:
        return f"{self.words} {self.values[index]:.4g}"


class Far:
    """Distance to the nearest chosen row over the largest that a candidate has; exactly that of k-center."""

    def __init__(self, rows: Rows, asked: Diversity):
        self.name, self.strength, self.rows = "diversity", asked.strength, rows
        self.near = np.full(len(rows), np.inf)
        self.least = (asked.minimum_distance * rows.scale) ** 2

    def gains(self, pool: Int[np.ndarray, " p"]) -> Float64[np.ndarray, " p"]:
        near = self.near[pool]
        largest = near.max()
        if not np.isfinite(largest):
            return np.ones(len(pool))
        return np.sqrt(near / largest) if largest > 0 else np.zeros(len(pool))

    def allows(self, left: int) -> Bool[np.ndarray, " n"]:
        return self.near >= self.least

    def take(self, index: int) -> None:
        lower(self.near, self.rows, index)

    def detail(self, index: int) -> str:
        if not np.isfinite(self.near[index]):
            return "nothing was chosen before"
        return f"{np.sqrt(self.near[index]) / self.rows.scale:.4g} away from the nearest row chosen before"


def by_range(values: Float64[np.ndarray, " p"]) -> Float64[np.ndarray, " p"]:
    """0 at the smallest, 1 at the largest; 0 everywhere where all are equal."""
    low, high = values.min(), values.max()
    return (values / 2 - low / 2) / (high / 2 - low / 2) if high > low else np.zeros(len(values))


def by_rank(values: Float64[np.ndarray, " p"]) -> Float64[np.ndarray, " p"]:
    """The rank from 0 to 1, equals at the mean of their places."""
    from scipy.stats import rankdata

    if len(values) < 2:
        return np.zeros(len(values))
    return (rankdata(values) - 1) / (len(values) - 1)


def density(rows: Rows, neighbours: int, most: int = MOST_REFERENCES) -> Float64[np.ndarray, " n"]:
    """1 / mean distance of each row to the nearest other ones, of all, or of `most` evenly spaced ones where there are more."""
    numbers = evenly(len(rows), most)
    references = rows[numbers]
    norms = squared_norms(references)
    place = np.full(len(rows), -1)
    place[numbers] = np.arange(len(numbers))
    neighbours = min(neighbours, len(numbers) - 1)
    if neighbours == 0:
        return np.zeros(len(rows))
    result = np.empty(len(rows))
    for part in rows.parts(1024):
        block = rows[part]
        squared = squared_norms(block)[:, None] + norms[None] - 2 * (block @ references.T)
        own = np.flatnonzero(place[part] >= 0)
        squared[own, place[part][own]] = np.inf
        nearest = np.partition(squared, neighbours - 1, axis=1)[:, :neighbours]
        mean = np.sqrt(np.maximum(nearest, 0)).mean(axis=1, dtype=np.float64)
        result[part] = rows.scale / np.maximum(mean, 1e-6)
    return result
