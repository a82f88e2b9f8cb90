"""`mmrlhf reward eval`: how far a reward agrees with held-out judgements, and whether its probabilities come true."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from mmrlhf.agreement import pair_agreement
from mmrlhf.calibration import ece, reliability_curve
from mmrlhf.data import Item, Pair, read_pairs, write_text
from mmrlhf.errors import UserError
from mmrlhf.rewards.score import check_output, load_on, score_items
from mmrlhf.statistics import bootstrap_ci
from mmrlhf.types import Reward

TIE_RULE = (
    "a tie is predicted where |2p - 1| <= tie_threshold; credit 1, 1/2 where one of label and prediction is a tie, 0"
)


@dataclass(frozen=True)
class EvalConfig:
    """Agreement with judged pairs (95 % interval over prompts) and calibration."""

    reward: str
    """Folder that `mmrlhf reward train` wrote, or a reward's name."""
    data: Path
    """PAIRS.jsonl that the reward was not trained on."""
    out: Path
    """JSON file to write."""
    tie_threshold: float | None = None
    """Predict a tie where |2p - 1| is at most this; default: the one that `mmrlhf reward calibrate` chose, else 0."""
    seed: int = 0
    """Of the bootstrap."""
    batch_size: int = 32
    """Images scored at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Measure, write the JSON file, return what is in it."""
    pairs = read_pairs(config.data)
    check_output(config.out)
    figures = evaluate_reward(
        load_on(config.reward, config.device),
        pairs,
        seed=config.seed,
        tie_threshold=config.tie_threshold,
        batch_size=config.batch_size,
        progress=True,
    )
    figures = {"reward": config.reward, "data": str(config.data)} | figures
    write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", config.out)
    low, high = figures["agreement_ci95"]
    print(f"agreement {figures['agreement']:.3f} (95% {low:.3f} … {high:.3f}), ECE {figures['ece']:.3f}: {config.out}")
    return figures


def evaluate_reward(
    reward: Reward,
    pairs: Sequence[Pair],
    *,
    seed: int = 0,
    tie_threshold: float | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> dict[str, Any]:
    """agreement, agreement_ci95, ece, nll, n, … of a reward on judged pairs; see `TIE_RULE` for ties.

    The tie threshold should come from other pairs (default: the reward's own, else 0). Pairs that nobody judged and pairs
    on which the reward abstains are left out. UserError where nothing is left.
    """
    threshold = float(getattr(reward, "tie_threshold", 0.0)) if tie_threshold is None else tie_threshold
    if not 0 <= threshold <= 1:
        raise UserError(f"--tie-threshold got {threshold}, allowed is from 0 to 1")
    judged = [pair for pair in pairs if pair.has_label]
    if not judged:
        raise UserError(f"none of {len(pairs)} pairs has a label: give pairs that somebody judged")
    margins = pair_margins(reward, judged, batch_size=batch_size, progress=progress)
    kept = [pair for pair, margin in zip(judged, margins, strict=True) if not np.isnan(margin)]
    if not kept:
        raise UserError(
            f"the reward abstains on all {len(judged)} pairs: give pairs that it can judge, or another reward"
        )
    margins = margins[~np.isnan(margins)]
    labels, probabilities = np.array([pair.label_0 for pair in kept]), expit(margins)
    credits = tie_credits(probabilities, labels, threshold)
    units = [pair.unit for pair in kept]
    low, high = bootstrap_ci(unit_values(credits, units), seed=seed)
    return {
        "agreement": float(credits.mean()),
        "agreement_ci95": [max(0.0, low), min(1.0, high)],
        "ece": ece(probabilities, labels),
        "nll": nll(margins, labels),
        "n": len(kept),
        "prompts": len(set(units)),
        "ties": int((labels == 0.5).sum()),
        "abstained": len(judged) - len(kept),
        "unlabelled": len(pairs) - len(judged),
        "tie_threshold": threshold,
        "tie_rule": TIE_RULE,
        "reliability": [entry._asdict() for entry in reliability_curve(probabilities, labels)],
    }


def pair_margins(
    reward: Reward, pairs: Sequence[Pair], *, batch_size: int = 32, progress: bool = False
) -> Float[np.ndarray, " n"]:
    """Score of the first image minus score of the second, NaN where the reward abstains on either."""
    items = [Item(pair.prompt, image) for pair in pairs for image in (pair.image_0, pair.image_1)]
    scores = score_items(reward, items, batch_size=batch_size, progress=progress).reshape(-1, 2)
    return scores[:, 0] - scores[:, 1]


def tie_credits(
    probabilities: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"], threshold: float
) -> Float[np.ndarray, " n"]:
    """Credit of each prediction: see `TIE_RULE` (Kirstain et al. 2023)."""
    gaps = 2 * probabilities - 1
    return np.asarray(pair_agreement(np.where(np.abs(gaps) <= threshold, 0.5, gaps > 0), labels), dtype=float)


def unit_values(values: Float[np.ndarray, " n"], units: Sequence[str]) -> Float[np.ndarray, " u"]:
    """One number a prompt whose mean is the mean of `values`, and whose spread is that of the ratio of the sums.

    Prompts have different numbers of pairs, so the plain means of prompts would have another mean. Source: Cochran 1977, 6.4.
    """
    names, rows = np.unique(np.array(units), return_inverse=True)
    sums, counts = np.bincount(rows, values), np.bincount(rows)
    return values.mean() + (sums - values.mean() * counts) * len(names) / len(values)


def nll(margins: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"]) -> float:
    """Mean cross entropy of σ(margin) in nats; a tie costs log 2 at best."""
    return float(np.mean(np.logaddexp(0, margins) - labels * margins))
