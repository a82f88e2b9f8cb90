"""Simulated raters: one shared taste, and each their own noise, ties and carelessness. Always declared as simulated."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mmrlhf.errors import UserError
from mmrlhf.store import Task
from mmrlhf.types import Preference


@dataclass(frozen=True)
class Rater:
    """How one simulated person answers, in units of the gold score (deviation about 1 over ordinary pictures).

    `noise` is the scale of the logistic error on a score difference; differences felt smaller than `tie_threshold` are
    called a tie; a share `random_share` of the answers, left or right, is given without looking.
    """

    name: str
    noise: float
    tie_threshold: float
    random_share: float


RATERS = (
    Rater("simulated-careful", noise=0.15, tie_threshold=0.15, random_share=0.01),
    Rater("simulated-average", noise=0.30, tie_threshold=0.25, random_share=0.05),
    Rater("simulated-hasty", noise=0.50, tie_threshold=0.20, random_share=0.12),
)


def simulate_preferences(
    tasks: Sequence[Task],
    scores: Mapping[str, float],
    raters: Sequence[Rater],
    generator: torch.Generator,
    *,
    overlap: int | None = None,
) -> list[Preference]:
    """What the raters answer to each task, in the order of the tasks; `scores` holds the gold score by content hash.

    `overlap` raters, drawn anew for each task, answer it (all of them without). The same for the same generator state.
    UserError where a task asks about an item without a score.
    """
    chosen = len(raters) if overlap is None else overlap
    if not 1 <= chosen <= len(raters):
        raise UserError(f"got overlap {chosen}, allowed is 1 to {len(raters)}: that many simulated raters there are")
    preferences = []
    for task in tasks:
        missing = [item for item in (task.item_0, task.item_1) if not math.isfinite(scores.get(item, math.nan))]
        if missing:
            raise UserError(f"no finite gold score for item '{missing[0]}': score every item of the tasks first")
        order = torch.randperm(len(raters), generator=generator)[:chosen].sort().values
        preferences += [answer(task, scores, raters[i], generator) for i in order.tolist()]
    return preferences


def answer(task: Task, scores: Mapping[str, float], rater: Rater, generator: torch.Generator) -> Preference:
    """One rater's answer: P(first) = sigmoid((difference - threshold) / noise), the tie rule of Rao and Kupper 1967."""
    side, slip, coin, quantile = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    items = (task.item_0, task.item_1)
    shown = items if side < 0.5 else items[::-1]
    quantile = min(max(quantile, 1e-12), 1 - 1e-12)
    felt = scores[items[0]] - scores[items[1]] + rater.noise * math.log(quantile / (1 - quantile))
    if slip < rater.random_share:
        label = float((shown[0] == items[0]) == (coin < 0.5))
    elif abs(felt) < rater.tie_threshold:
        label = 0.5
    else:
        label = float(felt > 0)
    identity = f"{task.key} {rater.name} {side} {slip} {coin} {quantile}"
    return Preference(
        prompt=task.prompt,
        items=items,
        label=label,
        annotator=rater.name,
        source="simulated",
        shown=shown,
        vote_id=hashlib.sha256(identity.encode()).hexdigest()[:32],
    )
