"""Diffusion-DPO: direct preference optimization on pairs of images (Wallace et al. 2023, https://arxiv.org/abs/2311.12908).

The loss is on the error of the network's answer, whatever it predicts: ε as in the paper, or likewise v or a flow's velocity.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusion.denoising import denoising_errors, reference_errors
from diffusion.families import Conditions
from diffusion.families.family import side_by_side
from diffusion.policy import DiffusionPolicy
from diffusion.preference_data import (
    EncodedPairs,
    PreferenceConfig,
    check_one_source,
    encode_pairs,
    fixed_errors,
    hold_out,
    read_preferences,
    validate_preferences,
)
from diffusion.preference_losses import diffusion_dpo_loss, implicit_rewards
from diffusion.preference_training import prepare, train_on_judged
from diffusion.training import begin
from diffusion.tuning_config import validate_tuning
from mmrlhf.config import check
from mmrlhf.data import Item
from mmrlhf.errors import UserError
from mmrlhf.runs import RunResult


@dataclass(frozen=True, kw_only=True)
class DPOConfig(PreferenceConfig):
    """Fine-tune a text-to-image model on comparisons: Diffusion-DPO, or D3PO on the model's own samples."""

    method: Literal["diffusion-dpo", "d3po"] = "diffusion-dpo"
    """diffusion-dpo: on the pairs of --data or --store; d3po: on denoising steps of pairs that it draws and --reward judges."""
    prompts: Path | None = None
    """For d3po: text file with a training prompt a line."""
    reward: str | None = None
    """For d3po: folder that `mmrlhf reward train` wrote, or a reward's name; of two images the one with more wins."""
    pairs_per_epoch: int = 32
    """For d3po: pairs of images drawn each epoch, from one start noise each."""
    sample_batch_size: int = 16
    """For d3po: images drawn at a time."""
    inner_epochs: int = 1
    """For d3po: passes over an epoch's pairs."""
    beta: float = 2000.0
    """How strongly the policy is held to the start; belongs to errors and log-probs averaged over latent dimensions: for d3po
    divide it by their number, 2000 is 0.12 a nat for Stable Diffusion 1.5 but 8 for tiny-sd."""
    epochs: int = 10
    """Passes over the pairs; for d3po rounds of sampling and training."""
    train_batch_size: int = 16
    """Pairs in a forward pass of training."""


def validate(config: DPOConfig) -> None:
    """UserError for a value outside its range, or one that the method does not take."""
    validate_preferences(config)
    validate_tuning(config, at_least_one=("pairs_per_epoch", "sample_batch_size", "inner_epochs"))
    given = [name for name in ("prompts", "reward", "data", "store") if getattr(config, name) is not None]
    if config.method == "d3po":
        if given != ["prompts", "reward"]:
            raise UserError(
                f"--method d3po got {named(given)}, allowed are --prompts and --reward: it draws its own pairs, and the reward "
                "judges them"
            )
        check(
            config, "eta", lambda value: value > 0, "above 0 with --method d3po: steps without noise have no log-prob"
        )
    elif set(given) & {"prompts", "reward"}:
        raise UserError(
            f"--method diffusion-dpo got {named(given)}, allowed is --data or --store: leave the others out, or give "
            "--method d3po"
        )
    else:
        check_one_source(config)


def named(options: list[str]) -> str:
    """Options as a sentence names them."""
    return " and ".join(f"--{name}" for name in options) or "neither --prompts nor --reward"


def train(
    config: DPOConfig,
    *,
    reward: Callable[..., Tensor] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> RunResult:
    """Run the method; `on_epoch` gets each line of metrics; `reward(images, prompts)` stands in for d3po's `config.reward`.

    Writes the folder that `DPOConfig.out` describes. `loss`, `implicit_accuracy` and `implicit_margin` are of the training in
    the epoch; `kl` and what begins with `validation_` (held-out prompts, fixed times and noise) of the policy at its end.
    UserError where a gradient is no number: the last checkpoint stays as it is.
    """
    validate(config)
    if config.method == "d3po":
        from diffusion import d3po  # which needs the config above

        return d3po.train(config, reward=reward, on_epoch=on_epoch)
    pairs, ties = read_preferences(config)
    trained, held = hold_out(pairs, config)
    prompts = list(dict.fromkeys(pair.prompt for pair in trained))
    items = [Item(pair.prompt, image) for pair in pairs for image in (pair.image_0, pair.image_1)]
    told, policy, latents = prepare(config, prompts, items, [pair.label_0 for pair in pairs])
    data = encode_pairs(latents, trained)
    run = begin("dpo", config, prompts, identity=told, policy=policy, on_epoch=on_epoch)
    validation = HeldOutPairs(policy, encode_pairs(latents, held), config) if held else None
    loss = partial(batch_loss, policy, data, config.beta)
    return train_on_judged(run, data.winners, data.prompts, loss, {"ties": ties}, validation)


def batch_loss(
    policy: DiffusionPolicy,
    data: EncodedPairs,
    beta: float,
    rows: Int[Tensor, " n"],
    winners: Float[Tensor, "n c h w"],
    noise: Float[Tensor, "n c h w"],
    times: Float[Tensor, " n"],
    conditions: Conditions,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The loss of some pairs: winner and loser get the same time and noise, and go through the network together."""
    clean = torch.cat([winners, data.losers[rows].to(winners)])
    both = (clean, noise.repeat(2, 1, 1, 1), times.repeat(2), side_by_side(conditions, conditions))
    reference = reference_errors(policy, *both)
    better, worse = implicit_rewards(denoising_errors(policy, *both), reference, beta).chunk(2)
    return diffusion_dpo_loss(better, worse, data.labels[rows].to(better))


class HeldOutPairs:
    """Pairs of prompts that are not trained on; the errors of the start, which stay, are measured once."""

    def __init__(self, policy: DiffusionPolicy, data: EncodedPairs, config: PreferenceConfig) -> None:
        self.policy, self.data, self.config = policy, data, config
        with policy.reference():
            self.start = self.errors()

    def errors(self) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Those of winners and of losers."""
        data, config = self.data, self.config
        winners, losers = (fixed_errors(self.policy, side, data.prompts, config.seed, config.train_batch_size)
                           for side in (data.winners, data.losers))  # fmt: skip
        return winners, losers

    def figures(self) -> dict[str, float]:
        """The metrics of `diffusion_dpo_loss` under the present weights."""
        better, worse = (
            implicit_rewards(now, start, self.config.beta) for now, start in zip(self.errors(), self.start, strict=True)
        )
        _, figures = diffusion_dpo_loss(better, worse, self.data.labels)
        return {f"validation_{name}": value for name, value in figures.items()}
