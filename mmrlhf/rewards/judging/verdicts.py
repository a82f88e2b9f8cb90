"""The verdicts of an AI rater: every pair judged in both orders, averaged, and in the store before the next ones."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from scipy.special import expit
from tqdm import tqdm

from mmrlhf.data import Item
from mmrlhf.rewards.judging.report import LEFT, RIGHT
from mmrlhf.rewards.score import score_items
from mmrlhf.store import Store, Task
from mmrlhf.types import Preference, Reward


@runtime_checkable
class Judge(Protocol):
    """P(left preferred) for pairs of picture files shown left and right; `symmetric` if sides cannot matter to it."""

    @property
    def symmetric(self) -> bool: ...

    def __call__(
        self, prompts: Sequence[str], left: Sequence[Path], right: Sequence[Path]
    ) -> Float[np.ndarray, " b"]: ...


class RewardJudge:
    """A reward as a judge: sigmoid((score of the left - score of the right) / temperature); each image is scored once."""

    symmetric = True

    def __init__(self, reward: Reward, temperature: float = 1.0) -> None:
        self.reward, self.temperature = reward, temperature
        self.scores: dict[Item, float] = {}

    def __call__(self, prompts: Sequence[str], left: Sequence[Path], right: Sequence[Path]) -> Float[np.ndarray, " b"]:
        sides = [[Item(prompt, path) for prompt, path in zip(prompts, side, strict=True)] for side in (left, right)]
        new = [item for item in dict.fromkeys(sides[0] + sides[1]) if item not in self.scores]
        self.scores.update(zip(new, score_items(self.reward, new).tolist(), strict=True))
        first, second = (np.array([self.scores[item] for item in side]) for side in sides)
        return expit((first - second) / self.temperature)


def judge_tasks(
    rater: Judge,
    store: Store,
    tasks: Sequence[Task],
    paths: Mapping[str, Path],
    *,
    name: str,
    tie_threshold: float = 0.0,
    batch_size: int = 8,
) -> tuple[int, int]:
    """Put a verdict on each task into the store, a batch a transaction: (how many are new there, how many abstentions)."""
    count, abstained = 0, 0
    with tqdm(total=len(tasks), desc="judge", unit="pair") as bar:
        for start in range(0, len(tasks), batch_size):
            batch = tasks[start : start + batch_size]
            begun = time.perf_counter()
            shown_left, shown_right = both_orders(
                rater,
                [task.prompt for task in batch],
                [paths[task.item_0] for task in batch],
                [paths[task.item_1] for task in batch],
            )
            seconds = (time.perf_counter() - begun) / len(batch)
            rows = zip(batch, shown_left.tolist(), shown_right.tolist(), strict=True)
            answers = [verdict(*row, name=name, tie_threshold=tie_threshold, seconds=seconds) for row in rows]
            verdicts = [answer for answer in answers if answer is not None]
            count += store.add_many(verdicts)
            abstained += len(answers) - len(verdicts)
            bar.update(len(batch))
    return count, abstained


def both_orders(
    rater: Judge, prompts: Sequence[str], first: Sequence[Path], second: Sequence[Path]
) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"]]:
    """P(first preferred) where it is shown left, and where it is shown right."""
    shown_left = rater(prompts, first, second)
    return shown_left, shown_left if rater.symmetric else 1 - rater(prompts, second, first)


def verdict(
    task: Task, shown_left: float, shown_right: float, *, name: str, tie_threshold: float, seconds: float
) -> Preference | None:
    """The mean of both orders as a soft label, a tie where it is near 1/2; None where the judge abstains (NaN)."""
    label = (shown_left + shown_right) / 2
    if np.isnan(label):
        return None
    items = (task.item_0, task.item_1)
    return Preference(
        prompt=task.prompt,
        items=items,
        label=0.5 if abs(2 * label - 1) <= tie_threshold else label,
        annotator=name,
        source="ai",
        shown=items,  # and swapped: the extra has both
        seconds=seconds,
        time=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        vote_id=hashlib.sha256(f"{name} {task.key}".encode()).hexdigest()[:32],
        extra={LEFT: shown_left, RIGHT: shown_right},
    )
