"""The measures of a reward on judged pairs: credit with ties, likelihood, Brier score, and intervals over prompts."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mmrlhf.agreement import pair_agreement
from mmrlhf.statistics import bootstrap_ci

TIE_RULE = (
    "a tie is predicted where |2p - 1| <= tie_threshold; credit 1, 1/2 where one of label and prediction is a tie, 0"
)
FEW_UNITS = 5  # drawing fewer prompts again says little about how prompts differ


def verdicts(probabilities: Float[np.ndarray, " n"], threshold: float) -> Float[np.ndarray, " n"]:
    """What is predicted: 1 the first, 0 the second, 0.5 a tie; see `TIE_RULE`."""
    gaps = 2 * probabilities - 1
    return np.where(np.abs(gaps) <= threshold, 0.5, (gaps > 0).astype(float))


def tie_credits(
    probabilities: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"], threshold: float
) -> Float[np.ndarray, " n"]:
    """Credit of each prediction: see `TIE_RULE` (Kirstain et al. 2023)."""
    return np.asarray(pair_agreement(verdicts(probabilities, threshold), labels), dtype=float)


def unit_values(values: Float[np.ndarray, " n"], units: Sequence[str]) -> Float[np.ndarray, " u"]:
    """One number a prompt whose mean is the mean of `values`, and whose spread is that of the ratio of the sums.

    Prompts have different numbers of pairs, so the plain means of prompts would have another mean. Source: Cochran 1977, 6.4.
    """
    names, rows = np.unique(np.array(units), return_inverse=True)
    sums, counts = np.bincount(rows, values), np.bincount(rows)
    return values.mean() + (sums - values.mean() * counts) * len(names) / len(values)


def share_interval(shares: Float[np.ndarray, " n"], units: Sequence[str], seed: int) -> list[float] | None:
    """95 % interval, over units, of the mean of numbers from 0 to 1; None for fewer than `FEW_UNITS`.

    Bootstrap (see `unit_values`); where all are 0 or all 1, so that drawing again shows no spread, the exact interval of as
    many independent units (Clopper and Pearson 1934).
    """
    count = len(set(units))
    if count < FEW_UNITS:
        return None
    if (shares == 0).all() or (shares == 1).all():
        bound = 0.025 ** (1 / count)
        return [0.0, 1 - bound] if shares[0] == 0 else [bound, 1.0]
    low, high = bootstrap_ci(unit_values(shares, units), seed=seed)
    return [max(0.0, low), min(1.0, high)]


def nll(margins: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"]) -> float:
    """Mean cross entropy of σ(margin) in nats; a tie costs log 2 at best."""
    return float(np.mean(np.logaddexp(0, margins) - labels * margins))


def brier(probabilities: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"]) -> float:
    """Mean squared distance of probability and label: 0 is perfect, 0.25 what always saying 1/2 costs on strict labels."""
    return float(np.mean((probabilities - labels) ** 2))
