"""What a new policy would earn, estimated from samples of an old one that people have rated.

A sample's log-weight is log π_new(sample) − log π_old(sample): of the whole sample, so a sum over steps and dimensions, never a
mean. Rewards are the ratings. Samples of one unit (say, a prompt) are resampled together, because they are not independent.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp
from scipy.stats import norm

from mmrlhf.errors import UserError
from mmrlhf.statistics import BLOCK_ENTRIES

FEW_SAMPLES = 10.0  # below this effective sample size an interval is not to be trusted
TOO_LARGE = 700.0  # exp of more overflows float64
Z95 = float(norm.ppf(0.975))
Column = Float[np.ndarray, " _"]  # as long as the log-weights: another length is the user's mistake, not the program's


class Estimate(NamedTuple):
    """The new policy's mean reward, its 95 % interval, and how much to trust it.

    `effective_samples` is (Σw)² / Σw², out of `n`; `mean_weight` should be near 1; `warning` is "" where nothing is amiss.
    """

    value: float
    ci95: tuple[float, float]
    effective_samples: float
    n: int
    mean_weight: float
    warning: str


def importance_sampling(
    log_weights: Float[np.ndarray, " n"], rewards: Column, *, units: Sequence[str] | None = None
) -> Estimate:
    """mean(w r): unbiased, of large variance. Normal interval. UserError where the weights overflow."""
    checked(log_weights, units, rewards=rewards)
    return normal_estimate(weights(log_weights) * rewards, log_weights, units)


def self_normalised(
    log_weights: Float[np.ndarray, " n"],
    rewards: Column,
    *,
    units: Sequence[str] | None = None,
    seed: int = 0,
) -> Estimate:
    """Σ w r / Σ w: always within the range of the rewards; a bias of order 1 / n buys a smaller variance.

    A factor that all weights share cancels. Percentile bootstrap interval over units. Source: Swaminathan and Joachims 2015.
    """
    checked(log_weights, units, rewards=rewards)
    if not np.isfinite(log_weights).any():
        raise UserError(
            f"all {len(log_weights)} log-weights are -inf, allowed is one finite at least: the new policy never does what was "
            "logged, so nothing is known of it"
        )
    w = np.exp(log_weights - log_weights.max())
    interval = bootstrap_ratio(unit_sums(w * rewards, units), unit_sums(w, units), seed)
    return described(float(w @ rewards / w.sum()), interval, log_weights)


def clipped(
    log_weights: Float[np.ndarray, " n"],
    rewards: Column,
    *,
    clip: float | None = None,
    units: Sequence[str] | None = None,
) -> Estimate:
    """mean(min(w, clip) r), clip √n by default: biased by E[(w − clip)⁺ r], which the normal interval does not cover.

    Source: Ionides 2008, truncated importance sampling.
    """
    checked(log_weights, units, rewards=rewards)
    limit = np.sqrt(len(log_weights)) if clip is None else clip
    if not limit > 0:
        raise UserError(f"clip got {clip}, allowed is a number above 0: the largest weight that counts in full")
    return normal_estimate(np.exp(np.minimum(log_weights, np.log(limit))) * rewards, log_weights, units)


def doubly_robust(
    log_weights: Float[np.ndarray, " n"],
    rewards: Column,
    predicted: Column,
    predicted_new: Column,
    *,
    units: Sequence[str] | None = None,
) -> Estimate:
    """mean(q̂(π) + w (r − q̂(x))): unbiased if the weights are right or the predictions q̂ are.

    `predicted` is q̂ of the logged sample, `predicted_new` the mean of q̂ over what the new policy does for the same prompt; q̂
    must not have been fitted on these rewards. Normal interval. Source: Dudík et al. 2011, equation 2.
    """
    checked(log_weights, units, rewards=rewards, predicted=predicted, predicted_new=predicted_new)
    return normal_estimate(predicted_new + weights(log_weights) * (rewards - predicted), log_weights, units)


def effective_sample_size(log_weights: Float[np.ndarray, " n"]) -> float:
    """(Σw)² / Σw², from 1 to n; 0 where every weight is 0. Source: Kong 1992."""
    if not np.isfinite(log_weights).any():
        return 0.0
    w = np.exp(log_weights - log_weights.max())
    return float(w.sum() ** 2 / (w @ w))


def normal_estimate(
    values: Float[np.ndarray, " n"], log_weights: Float[np.ndarray, " n"], units: Sequence[str] | None
) -> Estimate:
    """The mean of `values` with the interval mean ± 1.96 standard errors, of sums over units. Source: Cochran 1977, 6.4."""
    mean = float(values.mean())
    deviations = unit_sums(values - mean, units)
    count = len(deviations)
    error = float(np.sqrt(count / (count - 1) * (deviations @ deviations))) / len(values) if count > 1 else float("nan")
    return described(mean, (mean - Z95 * error, mean + Z95 * error), log_weights)


def described(value: float, ci95: tuple[float, float], log_weights: Float[np.ndarray, " n"]) -> Estimate:
    """The estimate with its diagnostics."""
    effective = effective_sample_size(log_weights)
    warning = (
        f"the effective sample size is {effective:.1f} of {len(log_weights)}: the policies are too far apart for the interval "
        "to be trusted; collect fresh ratings"
        if effective < FEW_SAMPLES
        else ""
    )
    with np.errstate(over="ignore"):
        mean_weight = float(np.exp(logsumexp(log_weights) - np.log(len(log_weights))))
    return Estimate(value, ci95, effective, len(log_weights), mean_weight, warning)


def weights(log_weights: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """exp(log-weights). UserError where one overflows."""
    if log_weights.max() > TOO_LARGE:
        raise UserError(
            f"a log-weight got {log_weights.max():.4g}, allowed is up to {TOO_LARGE:g}: the policies are too far apart; use "
            "self_normalised or clipped, or collect fresh ratings"
        )
    return np.exp(log_weights)


def unit_sums(values: Float[np.ndarray, " n"], units: Sequence[str] | None) -> Float[np.ndarray, " u"]:
    """The sum of the values of each unit; every value is a unit of its own without `units`."""
    return values if units is None else np.bincount(np.unique(np.array(units), return_inverse=True)[1], values)


def bootstrap_ratio(
    numerators: Float[np.ndarray, " u"], denominators: Float[np.ndarray, " u"], seed: int, *, resamples: int = 2000
) -> tuple[float, float]:
    """95 % percentile interval of Σ numerators / Σ denominators when units are drawn again with replacement.

    Draws in which every weight is 0 say nothing and are left out. Source: Efron and Tibshirani 1993, chapter 13.
    """
    generator = np.random.default_rng(seed)
    count = len(numerators)
    ratios = np.empty(resamples)
    block = max(1, BLOCK_ENTRIES // count)
    for start in range(0, resamples, block):
        drawn = generator.integers(count, size=(min(block, resamples - start), count))
        totals = denominators[drawn].sum(axis=1)
        with np.errstate(invalid="ignore"):
            ratios[start : start + len(drawn)] = numerators[drawn].sum(axis=1) / totals
    low, high = np.nanquantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def checked(log_weights: Float[np.ndarray, " n"], units: Sequence[str] | None, **columns: Column) -> None:
    """UserError for no samples, other lengths, float32 weights, NaN, or an infinite reward; a log-weight may be −inf."""
    given = {name: len(column) for name, column in columns.items()} | ({} if units is None else {"units": len(units)})
    if not len(log_weights) or any(length != len(log_weights) for length in given.values()):
        lengths = ", ".join(f"{length} {name}" for name, length in given.items())
        raise UserError(f"got {len(log_weights)} log-weights and {lengths}: give one of each a sample, of 1 or more")
    if log_weights.dtype != np.float64:
        raise UserError(
            f"log-weights got {log_weights.dtype}, allowed is float64: subtract the log-probabilities in float64"
        )
    if np.isnan(log_weights).any() or (log_weights == np.inf).any():
        bad = int((np.isnan(log_weights) | (log_weights == np.inf)).argmax())
        raise UserError(f"log-weight {bad} got {log_weights[bad]}, allowed are numbers and -inf: leave that sample out")
    for name, column in columns.items():
        if not np.isfinite(column).all():
            bad = int((~np.isfinite(column)).argmax())
            raise UserError(f"{name} {bad} got {column[bad]}, allowed are finite numbers: leave that sample out")
