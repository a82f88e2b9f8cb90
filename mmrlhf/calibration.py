"""Do predicted probabilities come true? Expected calibration error and the reliability curve of pair predictions."""

from typing import NamedTuple

import numpy as np
import torch

from mmrlhf.errors import UserError

Values = np.ndarray | torch.Tensor | list[float]


class ReliabilityBin(NamedTuple):
    """Mean prediction, observed share and number of predictions of one bin."""

    predicted: float
    observed: float
    size: int


def ece(probabilities: Values, labels: Values, bins: int = 15) -> float:
    """Expected calibration error of P(first preferred), in [0, 1]: Σ (n_b / n) |mean label − mean prediction| over `bins`.

    Every pair counts in both orders, because which item is called first is arbitrary. Guo et al. 2017 bin max(p, 1 − p) over
    [0, 1], which for pairs leaves half of the bins empty. With an odd number of `bins`, pairs in the middle one (of 15: P from
    7/15 to 8/15) add nothing, for there the two orders even out.
    """
    curve = reliability_curve(probabilities, labels, bins)
    total = sum(entry.size for entry in curve)
    return float(sum(entry.size * abs(entry.observed - entry.predicted) for entry in curve) / total)


def reliability_curve(probabilities: Values, labels: Values, bins: int = 15) -> list[ReliabilityBin]:
    """The bins of equal width over [0, 1] that hold anything, in order; every pair counts in both orders.

    `labels` are the weight of the first item in [0, 1]. UserError for values outside it, none, or different lengths.
    """
    p, y = checked(probabilities, "probabilities"), checked(labels, "labels")
    if len(p) != len(y):
        raise UserError(f"got {len(p)} probabilities and {len(y)} labels: give one label a probability")
    if bins < 1:
        raise UserError(f"bins got {bins}, allowed is 1 or more")
    rows = np.minimum((p * bins).astype(int), bins - 1)
    rows = np.concatenate([rows, bins - 1 - rows])  # mirrored rather than found anew: 1 − p may round over an edge
    p, y = np.concatenate([p, 1 - p]), np.concatenate([y, 1 - y])
    found = [rows == row for row in range(bins) if (rows == row).any()]
    return [ReliabilityBin(float(p[own].mean()), float(y[own].mean()), int(own.sum())) for own in found]


def checked(values: Values, name: str) -> np.ndarray:
    """A flat float64 array. UserError where it is empty or not within [0, 1]."""
    array = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype=np.float64).ravel()
    wrong = array[~((array >= 0) & (array <= 1))]
    if not len(array) or len(wrong):
        raise UserError(
            f"{name} got {wrong[0] if len(wrong) else 'no value'}, allowed is at least one number from 0 to 1"
        )
    return array
