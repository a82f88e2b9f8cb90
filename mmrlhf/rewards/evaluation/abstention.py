"""What is gained when a reward abstains where it is least sure, and whether an ensemble's disagreement says where that is."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import expit
from scipy.stats import spearmanr

from mmrlhf.rewards.evaluation.measures import share_interval, tie_credits

COVERAGES = tuple(step / 10 for step in range(10, 0, -1))
PESSIMISM = (0.0, 0.5, 1.0, 2.0)


def abstention(
    credits: Float[np.ndarray, " n"], sureness: Float[np.ndarray, " n"], units: Sequence[str], seed: int
) -> dict[str, Any]:
    """The agreement–coverage curve when the least sure pairs go first, and the area under it.

    `area` is the mean agreement over all coverages 1/n … 1: sureness that says nothing has the plain agreement, and knowing
    every mistake `area_best`. Source: Geifman and El-Yaniv 2017 (one minus their risk).
    """
    order = np.argsort(-sureness, kind="stable")
    curve = agreement_by_coverage(credits, sureness)
    points = []
    for coverage in COVERAGES:
        kept = order[: max(1, round(coverage * len(credits)))]
        points.append(
            {
                "coverage": coverage,
                "agreement": float(curve[len(kept) - 1]),
                "ci95": share_interval(credits[kept], [units[row] for row in kept], seed),
            }
        )
    return {
        "area": float(curve.mean()),
        "area_best": float(agreement_by_coverage(credits, credits).mean()),
        "curve": points,
    }


def agreement_by_coverage(
    credits: Float[np.ndarray, " n"], sureness: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """The mean credit of the k surest pairs for k = 1 … n; equally sure pairs come in any order, so each counts as their mean."""
    _, level, counts = np.unique(-sureness, return_inverse=True, return_counts=True)
    shared = np.bincount(level, credits) / counts
    return np.cumsum(np.repeat(shared, counts)) / np.arange(1, len(credits) + 1)


def ensemble_figures(
    members: Float[np.ndarray, "k n 2"],
    labels: Float[np.ndarray, " n"],
    credits: Float[np.ndarray, " n"],
    units: Sequence[str],
    *,
    threshold: float,
    seed: int,
) -> dict[str, Any]:
    """Of an ensemble of k: does disagreement point at mistakes, abstention by it, and the pessimistic reward's agreement.

    `members` are their scores of both images of each pair. Disagreement is the standard deviation of the members'
    probabilities: that of their margins is largest where all members are sure.
    """
    disagreement = expit(members[..., 0] - members[..., 1]).std(axis=0)
    varied = np.ptp(disagreement) > 0 and np.ptp(credits) > 0
    pessimistic = []
    for kappa in PESSIMISM:
        lower = lower_bound(members, kappa)
        own = tie_credits(expit(lower[:, 0] - lower[:, 1]), labels, threshold)
        pessimistic.append({"kappa": kappa, "agreement": float(own.mean()), "ci95": share_interval(own, units, seed)})
    return {
        "members": len(members),
        "disagreement_mean": float(disagreement.mean()),
        "disagreement_error_correlation": float(spearmanr(disagreement, 1 - credits)[0]) if varied else None,
        "abstention": abstention(credits, -disagreement, units, seed),
        "pessimistic": pessimistic,
    }


def lower_bound(members: Float[np.ndarray, "k n 2"], kappa: float) -> Float[np.ndarray, "n 2"]:
    """Mean − κ · standard deviation (over k) of the members' scores: what a `CLIPReward` with that `pessimism` gives."""
    return members.mean(axis=0) - kappa * members.std(axis=0)
