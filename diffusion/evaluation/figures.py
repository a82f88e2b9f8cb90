"""What scores and embeddings before and after say: means, gains, win rates and diversity, with intervals over prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from diffusion.diversity import pairwise_distances
from mmrlhf.rewards.evaluation.measures import FEW_UNITS, share_interval, unit_values
from mmrlhf.statistics import bootstrap_ci

FIGURES = ("before", "after", "difference", "win_rate")


def reward_figures(
    before: Float[np.ndarray, " n"], after: Float[np.ndarray, " n"], prompts: Sequence[str], seed: int
) -> dict[str, Any]:
    """Of pairs of pictures with the same prompt and noise: mean before, after, their difference, and how often `after` wins.

    A tie is half a win. Pairs with a NaN on either side are left out. The 95 % intervals (`…_ci95`) draw prompts again, with
    all pairs of each; None for fewer than `FEW_UNITS` prompts. Every figure is None where no pair is left.
    """
    kept = ~(np.isnan(before) | np.isnan(after))
    before, after = before[kept], after[kept]
    units = [prompt for prompt, keep in zip(prompts, kept, strict=True) if keep]
    counts = {"n": len(units), "prompts": len(set(units)), "abstained": int((~kept).sum())}
    if not units:
        return counts | {f"{name}{end}": None for name in FIGURES for end in ("", "_ci95")} | {"verdict": ""}
    wins = np.where(after == before, 0.5, (after > before).astype(float))
    found: dict[str, Any] = {**counts, "ties": int((wins == 0.5).sum())}
    for name, values in (("before", before), ("after", after), ("difference", after - before)):
        found |= {name: float(values.mean()), f"{name}_ci95": mean_interval(values, units, seed)}
    found |= {"win_rate": float(wins.mean()), "win_rate_ci95": share_interval(wins, units, seed)}
    return found | {"verdict": verdict(found["difference_ci95"])}


def mean_interval(values: Float[np.ndarray, " n"], units: Sequence[str], seed: int) -> list[float] | None:
    """95 % bootstrap interval, over units, of the mean; None for fewer than `FEW_UNITS`."""
    if len(set(units)) < FEW_UNITS:
        return None
    return list(bootstrap_ci(unit_values(values, units), seed=seed))


def verdict(interval: Sequence[float] | None) -> str:
    """higher, lower, or "" where the interval of a difference holds 0 or is missing."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return ""
    return "higher" if interval[0] > 0 else "lower"


def diversity_figures(
    before: Float[np.ndarray, "n p"], after: Float[np.ndarray, "n p"], prompts: Sequence[str], seed: int
) -> dict[str, Any] | None:
    """The mean over prompts of `pairwise_distances` of embeddings before, after, and the difference, with intervals over
    prompts; None where no prompt has two pictures.
    """
    first, second = pairwise_distances(before, prompts), pairwise_distances(after, prompts)
    if not first:
        return None
    found: dict[str, Any] = {"prompts": len(first)}
    units = [str(prompt) for prompt in first]
    one, two = (np.array([side[prompt] for prompt in first]) for side in (first, second))
    for name, values in (("before", one), ("after", two), ("difference", two - one)):
        found |= {name: float(values.mean()), f"{name}_ci95": mean_interval(values, units, seed)}
    return found | {"verdict": verdict(found["difference_ci95"])}


def category_figures(
    scores: dict[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]],
    prompts: Sequence[str],
    categories: Sequence[str],
    seed: int,
) -> list[dict[str, Any]]:
    """`reward_figures` of each category, in the order in which they come; nothing where there is but one."""
    names = list(dict.fromkeys(categories))
    if len(names) < 2:
        return []
    found = []
    for name in names:
        rows = [row for row, category in enumerate(categories) if category == name]
        own = [prompts[row] for row in rows]
        rewards = [
            {"name": reward} | reward_figures(before[rows], after[rows], own, seed)
            for reward, (before, after) in scores.items()
        ]
        found.append({"name": name, "prompts": len(set(own)), "rewards": rewards})
    return found
