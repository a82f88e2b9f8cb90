"""Whether the scores of one round are still those of the round before: stability index, Kolmogorov–Smirnov, mean shift."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import chi2, ks_2samp

from mmrlhf.errors import UserError
from mmrlhf.statistics import bootstrap_ci

SMOOTHING = 0.5  # added to the count of every bin, so that an empty one has no infinite share (Jeffreys' prior)
LOOK, RETRAIN = 0.1, 0.25  # the usual thresholds of the index (Siddiqi 2006)
Verdict = Literal["stable", "look", "retrain"]


class Stability(NamedTuple):
    """The population stability index Σ (a_k − b_k) log(a_k / b_k) over bins of equal share in the sample before.

    `expected` is what the index is on average if nothing changed, (bins − 1)(1 / n_before + 1 / n_after), and `limit95` what it
    then exceeds once in 20; `corrected` is `value` less `expected`, 0 at least. `edges` are the inner ones of the bins.
    """

    value: float
    corrected: float
    expected: float
    limit95: float
    edges: tuple[float, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]


class Shift(NamedTuple):
    """Mean after minus mean before, its 95 % interval, and the same shift in standard deviations of the scores before."""

    value: float
    ci95: tuple[float, float]
    in_sd: float | None


def population_stability(before: Float[np.ndarray, " n"], after: Float[np.ndarray, " m"], bins: int = 10) -> Stability:
    """The index of two samples of scores; equal scores share a bin, so there may be fewer than `bins`.

    Small samples: each bin's share is (count + 1/2) / (n + bins / 2), and the mean of the index under no change is taken off.
    Source: Siddiqi 2006; its distribution, about χ²(bins − 1)·(1 / n + 1 / m): Yurdakul and Naranjo 2020.
    """
    check_scores(before, "before")
    check_scores(after, "after")
    if bins < 2:
        raise UserError(f"the stability index got {bins} bins, allowed is 2 or more")
    edges = np.unique(np.quantile(before, np.arange(1, bins) / bins, method="inverted_cdf"))
    edges = edges[edges < before.max()]  # so that, the edges being scores themselves, no bin was empty before
    share_before, share_after = (smoothed_shares(scores, edges) for scores in (before, after))
    index = float(((share_after - share_before) * np.log(share_after / share_before)).sum())
    scale = 1 / len(before) + 1 / len(after)
    expected = len(edges) * scale
    return Stability(
        index,
        max(0.0, index - expected),
        expected,
        float(chi2.ppf(0.95, len(edges)) * scale) if len(edges) else 0.0,
        tuple(edges.tolist()),
        tuple(share_before.tolist()),
        tuple(share_after.tolist()),
    )


def smoothed_shares(scores: Float[np.ndarray, " n"], edges: Float[np.ndarray, " e"]) -> Float[np.ndarray, " bins"]:
    """The share of the scores in each bin, all above 0; a score on an edge is in the bin below it."""
    counts = np.bincount(np.searchsorted(edges, scores), minlength=len(edges) + 1) + SMOOTHING
    return counts / counts.sum()


def stability_verdict(corrected: float) -> Verdict:
    """Below 0.1 stable, up to 0.25 look, above it retrain."""
    return "stable" if corrected < LOOK else "look" if corrected <= RETRAIN else "retrain"


def kolmogorov_smirnov(before: Float[np.ndarray, " n"], after: Float[np.ndarray, " m"]) -> tuple[float, float]:
    """(D, p): the largest distance of the two cumulative distributions, and how often chance makes it as large.

    p takes the scores to be independent; it is too small where prompts have several images each.
    """
    check_scores(before, "before")
    check_scores(after, "after")
    found = ks_2samp(before, after)
    return float(found.statistic), float(found.pvalue)


def mean_shift(
    before: Float[np.ndarray, " n"],
    after: Float[np.ndarray, " m"],
    before_units: Sequence[str],
    after_units: Sequence[str],
    *,
    seed: int = 0,
) -> Shift:
    """How far the mean moved. The interval resamples units (prompts), those of both samples together, as one.

    A prompt that is in both samples is drawn for both, so what is easy about it cancels. Source: Cochran 1977, 6.4.
    """
    check_scores(before, "before")
    check_scores(after, "after")
    names, rows = np.unique(np.array([*before_units, *after_units]), return_inverse=True)
    parts = []
    for scores, own in ((before, rows[: len(before)]), (after, rows[len(before) :])):
        sums, counts = (np.bincount(own, values, len(names)) for values in (scores, np.ones(len(scores))))
        parts.append((sums - scores.mean() * counts) / len(scores))
    value = float(after.mean() - before.mean())
    interval = bootstrap_ci(value + (parts[1] - parts[0]) * len(names), seed=seed)
    spread = float(before.std(ddof=1)) if len(before) > 1 else 0.0
    return Shift(value, interval, value / spread if spread > 0 else None)


def check_scores(scores: Float[np.ndarray, " n"], name: str) -> None:
    """UserError for no scores, or one that is not finite."""
    if not len(scores) or not np.isfinite(scores).all():
        bad = "no score" if not len(scores) else f"{int((~np.isfinite(scores)).sum())} scores that are not finite"
        raise UserError(f"the sample {name} got {bad}: give at least one finite score, leaving out abstentions")
