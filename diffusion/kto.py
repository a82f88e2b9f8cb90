"""Diffusion-KTO: human utility on images that are liked or disliked, without pairs (Li et al. 2024, https://arxiv.org/abs/2404.04465).

The loss is on the error of the network's answer, whatever it predicts: ε as in the paper, or likewise v or a flow's velocity.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusion.denoising import denoising_errors, reference_errors
from diffusion.families import Conditions
from diffusion.policy import DiffusionPolicy
from diffusion.preference_data import (
    Liking,
    PreferenceConfig,
    check_one_source,
    fixed_errors,
    hold_out,
    read_likings,
    validate_preferences,
)
from diffusion.preference_losses import diffusion_kto_loss, implicit_rewards
from diffusion.preference_training import prepare, train_on_judged
from diffusion.sft import Batch, BatchLoss, Latents, Places, parts_of
from diffusion.training import begin
from mmrlhf import distributed
from mmrlhf.config import check
from mmrlhf.data import Item
from mmrlhf.runs import RunResult


@dataclass(frozen=True, kw_only=True)
class KTOConfig(PreferenceConfig):
    """Fine-tune a text-to-image model on images that are liked or disliked: Diffusion-KTO."""

    data: Path | None = None
    """PAIRS.jsonl, whose winners are liked and losers disliked, or a file with ratings, rankings and vetoes too."""
    train_batch_size: int = 16
    """Images in a forward pass of training, and in the mean that their rewards are compared with."""


def validate(config: KTOConfig) -> None:
    """UserError for a value outside its range."""
    validate_preferences(config)
    check(config, "train_batch_size", lambda value: value >= 2, "2 or more: rewards are compared with the batch's mean")
    check_one_source(config)


def train(config: KTOConfig, *, on_epoch: Callable[[dict[str, Any]], None] | None = None) -> RunResult:
    """Run the method; `on_epoch` gets each line of metrics. Writes the folder that `KTOConfig.out` describes.

    `loss`, `implicit_accuracy` and `implicit_margin` are of the training in the epoch; `kl` and what begins with `validation_`
    (held-out prompts, fixed times and noise) of the policy at its end. UserError where a gradient is no number.
    """
    validate(config)
    likings, left_out = read_likings(config)
    trained, held = hold_out(likings, config)
    prompts = list(dict.fromkeys(liking.prompt for liking in trained))
    items = [Item(each.prompt, each.image) for each in likings]
    told, policy, latents = prepare(config, prompts, items, [each.liked for each in likings])
    clean = torch.stack([latents[liking.image] for liking in trained])
    liked, texts = torch.tensor([liking.liked for liking in trained]), [liking.prompt for liking in trained]
    run = begin("kto", config, prompts, identity=told, policy=policy, on_epoch=on_epoch)
    validation = (
        HeldOutLikings(policy, torch.stack([latents[each.image] for each in held]), held, config) if held else None
    )
    loss = partial(batch_loss, policy, liked, config.beta)
    whole = partial(loss_in_batch, policy, liked, config.beta)
    return train_on_judged(run, clean, texts, loss, {"left_out": left_out}, validation, whole)


def batch_loss(
    policy: DiffusionPolicy,
    liked: Float[Tensor, " samples"],
    beta: float,
    rows: Int[Tensor, " n"],
    clean: Float[Tensor, "n c h w"],
    noise: Float[Tensor, "n c h w"],
    times: Float[Tensor, " n"],
    conditions: Conditions,
    point: float | None = None,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The loss of some images, each at a time and noise of its own; `point` is that of their batch, None where they are all."""
    reference = reference_errors(policy, clean, noise, times, conditions)
    rewards = implicit_rewards(denoising_errors(policy, clean, noise, times, conditions), reference, beta)
    return diffusion_kto_loss(rewards, liked[rows].to(rewards), point)


@torch.no_grad()
def loss_in_batch(
    policy: DiffusionPolicy, liked: Float[Tensor, " samples"], beta: float, batch: Batch, parts: Places
) -> BatchLoss:
    """The loss of the parts of a batch that does not go through the network at once: their rewards are looked at beforehand."""
    loss = partial(batch_loss, policy, liked, beta)
    if distributed.size() == 1 and len(parts) == 1:
        return loss
    inputs = [each[1:] for each in parts_of(batch, parts)]
    own_passes = len(inputs)
    if policy.split:  # all make equally many passes
        spare = parts_of(batch, [torch.zeros(1, dtype=torch.long)])[0][1:]
        inputs += [spare] * (int(distributed.extremes(own_passes, own_passes)[1]) - own_passes)
    rewards = [
        implicit_rewards(denoising_errors(policy, *each), reference_errors(policy, *each), beta) for each in inputs
    ][:own_passes]
    own = [sum(float(each.double().sum()) for each in rewards), sum(len(each) for each in rewards)]
    summed, count = distributed.total(torch.tensor(own, dtype=torch.float64)).tolist()
    return partial(loss, point=max(0.0, summed / count))


class HeldOutLikings:
    """Images of prompts that are not trained on; the errors of the start, which stay, are measured once."""

    def __init__(
        self, policy: DiffusionPolicy, clean: Latents, likings: Sequence[Liking], config: PreferenceConfig
    ) -> None:
        self.policy, self.clean, self.config = policy, clean, config
        self.prompts = [liking.prompt for liking in likings]
        self.liked = torch.tensor([liking.liked for liking in likings])
        with policy.reference():
            self.start = self.errors()

    def errors(self) -> Float[Tensor, " n"]:
        """Under the present weights."""
        return fixed_errors(self.policy, self.clean, self.prompts, self.config.seed, self.config.train_batch_size)

    def figures(self) -> dict[str, float]:
        """The metrics of `diffusion_kto_loss` under the present weights, in one batch."""
        _, figures = diffusion_kto_loss(implicit_rewards(self.errors(), self.start, self.config.beta), self.liked)
        return {f"validation_{name}": value for name, value in figures.items()}
