"""Several rewards as one: a weighted sum, and constraints that veto first."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.data import Item
from mmrlhf.errors import UserError
from mmrlhf.types import Images, Reward


@dataclass(frozen=True)
class Part:
    """`weight` × (score - `mean`) / `std` of one reward; mean and std are fixed numbers, so that rows stay independent."""

    reward: Reward
    weight: float = 1.0
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class Constraint:
    """What a reward must say of an image: at least, or at most so much (or both)."""

    reward: Reward
    at_least: float = -math.inf
    at_most: float = math.inf


@dataclass(frozen=True)
class Combination:
    """The sum of the parts; an image that breaks a constraint scores `veto_score` instead (NaN: abstain), and none less.

    NaN where a part of weight other than 0, or a constraint, abstains and no other constraint is broken. Picklable; row-
    independent where its parts are.
    """

    parts: tuple[Part, ...]
    constraints: tuple[Constraint, ...] = ()
    veto_score: float = math.nan

    @property
    def differentiable(self) -> bool:
        """Whether gradients reach the images: through every part, and past no constraint."""
        return not self.constraints and all(part.reward.differentiable for part in self.parts if part.weight)

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.differentiable):
            total = self.total(images, prompts)
            if not self.constraints:
                return total
            if not math.isnan(self.veto_score):
                total = total.clamp(min=self.veto_score)  # what passes is never below what does not; NaN stays NaN
            unsure, broken = self.check(images, prompts)
            return total.masked_fill(unsure, math.nan).masked_fill(broken, self.veto_score)

    def total(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """The weighted sum, whatever the constraints say; a part of weight 0 is not asked."""
        counted = [part for part in self.parts if part.weight]
        scores = [part.weight * (part.reward(images, prompts) - part.mean) / part.std for part in counted]
        return torch.stack(scores).sum(dim=0)

    def check(self, images: Images, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(a constraint abstains, a constraint is broken), a Boolean an image."""
        scores = [constraint.reward(images, prompts) for constraint in self.constraints]
        broken = [(s < c.at_least) | (s > c.at_most) for s, c in zip(scores, self.constraints, strict=True)]
        return torch.stack(scores).isnan().any(dim=0), torch.stack(broken).any(dim=0)

    def to(self, device: torch.device | str) -> "Combination":
        """The same with the weights of its rewards moved."""
        return dataclasses.replace(
            self,
            parts=tuple(dataclasses.replace(part, reward=moved(part.reward, device)) for part in self.parts),
            constraints=tuple(dataclasses.replace(c, reward=moved(c.reward, device)) for c in self.constraints),
        )


def moved(reward: Any, device: torch.device | str) -> Any:
    """A reward on a device, where it has weights to move."""
    return reward.to(device) if hasattr(reward, "to") else reward


def measure(parts: Sequence[Part], items: Sequence[Item], *, batch_size: int = 32) -> list[Part]:
    """The parts with the mean and standard deviation of their scores over `items`, to be written into the file.

    Abstentions are left out. UserError where fewer than two scores are left, or all are the same.
    """
    from mmrlhf.rewards.score import score_items

    measured = []
    for part in parts:
        scores = score_items(part.reward, items, batch_size=batch_size, progress=True)
        scores = scores[~np.isnan(scores)]
        if len(scores) < 2 or scores.std() == 0:
            raise UserError(
                f"cannot standardise a reward by {len(scores)} scores without spread: give different images"
            )
        measured.append(dataclasses.replace(part, mean=float(scores.mean()), std=float(scores.std())))
    return measured
