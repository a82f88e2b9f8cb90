"""The words of the project as types: preferences, segment labels, rollouts, rewards and policies.

Shapes: an image batch is `Float[Tensor, "b 3 h w"]`, RGB in [0, 1]; `b` counts samples, `t` denoising steps or tokens.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf import __version__

Images = Float[Tensor, "b 3 h w"]


@dataclass(frozen=True)
class Preference:
    """One judgement on two items shown for one prompt.

    `items` are content hashes (see `mmrlhf.images.content_hash`), never tensors. `label` is the weight of the first item in
    [0, 1]: 1 = first preferred, 0 = second preferred, 0.5 = tie, anything between a soft label.
    `shown` are the items in the order in which the annotator saw them, left to right. `unsafe` are those vetoed beside it, and
    `app_version` is the version of the software that recorded it.
    """

    prompt: str
    items: tuple[str, str]
    label: float
    annotator: str
    source: Literal["human", "simulated", "ai"]
    shown: tuple[str, str]
    seconds: float = 0.0
    time: str = ""
    vote_id: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    unsafe: tuple[str, ...] = ()
    app_version: str = __version__


@dataclass(frozen=True)
class SegmentLabel:
    """A tag on the span [start, end) of an item: of a text (characters), of denoising steps, or of a trajectory."""

    item: str
    start: int
    end: int
    tag: Literal["correct", "misleading", "irrelevant"]
    correction: str | None = None


@runtime_checkable
class Reward(Protocol):
    """Scores each image for its prompt; higher is better; row-independent; NaN abstains. Picklable."""

    @property
    def differentiable(self) -> bool: ...

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]: ...


class Rollout(NamedTuple):
    """What a policy did for a batch of prompts: `t` Gaussian denoising steps over latents of shape (c, h, w)."""

    prompts: tuple[str, ...]
    latents: Float[Tensor, "b t c h w"]
    next_latents: Float[Tensor, "b t c h w"]
    timesteps: Tensor  # Int "b t"
    log_probs: Float[Tensor, "b t"]
    images: Images
    clean: Float[Tensor, "b c h w"]
    """The final latents, which `images` are decoded from."""


@runtime_checkable
class Policy(Protocol):
    """A text-to-image model that can be sampled, and asked for the log-probability of what it sampled."""

    def sample(self, prompts: Sequence[str], generator: torch.Generator) -> Rollout: ...

    def log_prob(self, rollout: Rollout) -> Float[Tensor, "b t"]: ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside, the policy is the one that training started from."""
        ...
