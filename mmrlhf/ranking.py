"""Strengths from comparisons: Bradley–Terry with intervals, and Elo."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.special import expit
from scipy.stats import norm

from mmrlhf.errors import UserError

STEPS, TOLERANCE = 100, 1e-10


class Strengths(NamedTuple):
    """Of each item its log-strength, of mean 0, and an interval of it; and the covariance that the intervals come from."""

    scores: Float64[np.ndarray, " n"]
    low: Float64[np.ndarray, " n"]
    high: Float64[np.ndarray, " n"]
    covariance: Float64[np.ndarray, "n n"]


def bradley_terry(
    first: Int[np.ndarray, " c"],
    second: Int[np.ndarray, " c"],
    labels: Float[np.ndarray, " c"],
    items: int,
    *,
    precision: float = 0.0,
    level: float = 0.95,
) -> Strengths:
    """P(first wins) = σ(score of first − score of second), most likely by Newton's method; a tie is half a win for each.

    `labels` are the weight of the first in [0, 1]; items are numbered from 0. Intervals are the normal theory's, from the
    observed information. `precision` is of a normal prior around 0. Without, UserError where no finite strengths are most
    likely: that takes a chain of wins from each item to every other (Ford 1957). Source: Bradley and Terry 1952.
    """
    check_comparisons(first, second, labels, items)
    if not 0 < level < 1 or not 0 <= precision < np.inf:
        raise UserError(
            f"Bradley–Terry got level {level}, precision {precision}: give a level between 0 and 1, a precision of 0 or more"
        )
    if precision == 0:
        refuse_unconnected(first, second, labels, items)
    counts, wins = table(first, second, np.ones(len(labels)), items), table(first, second, labels, items)
    wins, counts = wins + (counts - wins).T, counts + counts.T  # [i, j]: how often i won against j, and met it
    scores = np.zeros(items)
    for _ in range(STEPS):
        chance = expit(scores[:, None] - scores[None, :])
        gradient = (wins - counts * chance).sum(axis=1) - precision * scores
        step = np.linalg.solve(information(counts * chance * (1 - chance), precision) + 1 / items, gradient)
        scores += step / max(1.0, float(np.abs(step).max()))  # a step of more than 1 overshoots where chances saturate
        if np.abs(step).max() < TOLERANCE:
            break
    scores -= scores.mean()
    chance = expit(scores[:, None] - scores[None, :])
    # 1/n everywhere makes the direction in which all rise together, of which no comparison tells, invertible; it is taken out
    centre = np.eye(items) - 1 / items
    covariance = centre @ np.linalg.inv(information(counts * chance * (1 - chance), precision) + 1 / items) @ centre
    half = norm.ppf((1 + level) / 2) * np.sqrt(np.maximum(np.diag(covariance), 0))
    return Strengths(scores, scores - half, scores + half, covariance)


def elo(
    first: Int[np.ndarray, " c"],
    second: Int[np.ndarray, " c"],
    labels: Float[np.ndarray, " c"],
    items: int,
    *,
    start: float = 1500.0,
    gain: float = 32.0,
    scale: float = 400.0,
) -> Float64[np.ndarray, " n"]:
    """Ratings after the comparisons in their order, each moved by `gain` × (result − expected). Source: Elo 1978."""
    check_comparisons(first, second, labels, items)
    ratings = np.full(items, start)
    for one, other, label in zip(first.tolist(), second.tolist(), labels.tolist(), strict=True):
        expected = 1 / (1 + 10 ** ((ratings[other] - ratings[one]) / scale))
        ratings[one] += gain * (label - expected)
        ratings[other] -= gain * (label - expected)
    return ratings


def information(weights: Float64[np.ndarray, "n n"], precision: float) -> Float64[np.ndarray, "n n"]:
    """Minus the second derivatives of log-likelihood and prior; `weights` are those of each two items' comparisons."""
    return np.diag(weights.sum(axis=1) + precision) - weights


def table(
    first: Int[np.ndarray, " c"], second: Int[np.ndarray, " c"], values: Float[np.ndarray, " c"], items: int
) -> Float64[np.ndarray, "n n"]:
    """[i, j]: the sum of the values where i was first and j second."""
    return coo_matrix((np.asarray(values, dtype=np.float64), (first, second)), shape=(items, items)).toarray()


def check_comparisons(
    first: Int[np.ndarray, " c"], second: Int[np.ndarray, " c"], labels: Float[np.ndarray, " c"], items: int
) -> None:
    """UserError where the comparisons are none."""
    both = np.concatenate([first, second])
    if not len(first) or both.min() < 0 or both.max() >= items or (first == second).any():
        raise UserError(
            f"got {len(first)} comparisons of {items} items: give 1 or more, each of two different ones from 0 to {items - 1}"
        )
    if not ((labels >= 0) & (labels <= 1)).all():
        raise UserError("a comparison's label is outside 0 to 1: give the weight of the first, 0.5 for a tie")


def refuse_unconnected(
    first: Int[np.ndarray, " c"], second: Int[np.ndarray, " c"], labels: Float[np.ndarray, " c"], items: int
) -> None:
    """UserError unless a chain of wins (or ties) leads from each item to every other."""
    won = (
        table(first, second, (labels > 0).astype(float), items)
        + table(first, second, (labels < 1).astype(float), items).T
    )
    parts, _ = connected_components(won, directed=True, connection="strong")
    if parts > 1:
        raise UserError(
            f"the comparisons have no most likely strengths: of {parts} groups of items some never won against the others, or "
            "never met them; give more comparisons, or a precision above 0"
        )
