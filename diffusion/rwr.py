"""Reward-weighted regression: the denoising loss of the policy's own samples, weighted by their rewards.

Peters & Schaal 2007; Lee et al. 2023, https://arxiv.org/abs/2302.12192; the baseline of Black et al. 2023.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusion.denoising import denoising_errors
from diffusion.diagnosis import diagnose_samples
from diffusion.diversity import DiversityWatch
from diffusion.draft import kl_sampling
from diffusion.families import Conditions
from diffusion.policy import DiffusionPolicy
from diffusion.rollouts import check_numbers, draw_prompts, own_rows, reward_figures, sample_and_rate, whole
from diffusion.sft import fit, kl_paths
from diffusion.training import begin, hold_to_budget, load_reward, path_kl
from diffusion.tuning_config import TuningConfig, validate_tuning
from mmrlhf.config import check
from mmrlhf.data import read_prompts
from mmrlhf.runs import RunResult
from mmrlhf.seeding import seeded


@dataclass(frozen=True, kw_only=True)
class RWRConfig(TuningConfig):
    """Fine-tune a text-to-image model by reward-weighted regression, or best-of-N fine-tuning with --top."""

    prompts: Path
    """Text file with a training prompt a line."""
    reward: str
    """Folder that `mmrlhf reward train` wrote, or a reward's name."""
    temperature: float = 1.0
    """Samples weigh softmax(reward / temperature) over the epoch; in units of the reward."""
    top: int = 0
    """Train on this many best samples of each prompt, equally weighted, in place of softmax; 0 is softmax."""
    samples_per_epoch: int = 64
    """Images drawn each epoch."""
    samples_per_prompt: int = 8
    """Images of each prompt drawn in an epoch."""
    sample_batch_size: int = 16
    """Images drawn at a time."""
    inner_epochs: int = 1
    """Passes over an epoch's samples, each with new noise."""


def validate(config: RWRConfig) -> None:
    """UserError for a value outside its range."""
    names = ("samples_per_epoch", "samples_per_prompt", "sample_batch_size", "inner_epochs", "kl_samples")
    validate_tuning(config, at_least_one=names, above_zero=("temperature",))
    most = config.samples_per_prompt
    check(config, "top", lambda value: 0 <= value <= most, f"0 up to --samples-per-prompt {most}")


def train(
    config: RWRConfig,
    *,
    reward: Callable[..., Tensor] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> RunResult:
    """Run the algorithm; `reward(images, prompts)` stands in for the one that `config.reward` names, `on_epoch` gets each line.

    Writes the folder that `RWRConfig.out` describes. `reward_mean` and `kl` are of the policy that drew the epoch's samples.
    UserError where rewards or gradients are no longer numbers: the last checkpoint stays as it is.
    """
    validate(config)
    prompts = read_prompts(config.prompts)
    reward = load_reward(config.reward, config.device) if reward is None else reward
    diversity = DiversityWatch(config.embedder)
    run = begin("rwr", config, prompts, on_epoch=on_epoch)
    policy = run.policy
    for epoch in run.epochs():
        generator = seeded(config.seed, epoch)
        chosen = draw_prompts(prompts, config.samples_per_epoch, config.samples_per_prompt, generator)
        rollout, rewards = sample_and_rate(policy, reward, chosen, config.sample_batch_size, generator)
        check_numbers(run, rollout, rewards, epoch)
        weights = (
            best_weights(rewards, chosen, config.top) if config.top else softmax_weights(rewards, config.temperature)
        )
        with kl_sampling(policy, config):
            measured = kl_paths(policy, config, chosen, epoch)
            kl, before = path_kl(policy, measured), run.snapshot()
        loss = partial(batch_loss, policy, weights)
        kept = weights.nonzero().flatten()
        clean = whole(rollout.clean, own_rows(len(chosen), config.sample_batch_size), len(chosen))
        figures = fit(run, clean, chosen, kept, loss, generator, epoch, config.inner_epochs)
        with kl_sampling(policy, config):
            hold_to_budget(run, measured, before)
        line = {"epoch": epoch, "samples": len(chosen), "seconds": run.seconds(), **reward_figures(rewards), "kl": kl}
        line |= diversity.figures(rollout)
        line |= {"effective_samples": float(weights.sum().square() / weights.square().sum()), **figures}
        run.record(line, diagnose_samples([*run.metrics, line]), ("reward_mean", "kl", "loss"))
    return run.close()


def batch_loss(
    policy: DiffusionPolicy,
    weights: Float[Tensor, " samples"],
    rows: Int[Tensor, " n"],
    clean: Float[Tensor, "n c h w"],
    noise: Float[Tensor, "n c h w"],
    times: Float[Tensor, " n"],
    conditions: Conditions,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The loss of some rows of the epoch's samples."""
    errors = denoising_errors(policy, clean, noise, times, conditions)
    return weighted_loss(errors, weights[rows].to(errors.device))


def softmax_weights(rewards: Float[Tensor, " b"], temperature: float) -> Float[Tensor, " b"]:
    """softmax(r / temperature) over the samples that have a reward, times their number (mean 1); 0 where it is NaN."""
    scaled = rewards.double().nan_to_num(nan=-torch.inf) / temperature
    return (scaled.softmax(dim=0) * rewards.isfinite().sum()).to(rewards)


def best_weights(rewards: Float[Tensor, " b"], prompts: Sequence[str], top: int) -> Float[Tensor, " b"]:
    """1 for the `top` best samples of each prompt (of equals the first), 0 for the others and where the reward is NaN."""
    weights = torch.zeros_like(rewards)
    for prompt in dict.fromkeys(prompts):
        rows = [row for row, other in enumerate(prompts) if other == prompt and rewards[row].isfinite()]
        weights[sorted(rows, key=lambda row: -float(rewards[row]))[:top]] = 1
    return weights


def weighted_loss(
    errors: Float[Tensor, " b"], weights: Float[Tensor, " b"]
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """mean of weight · denoising error; metrics: `loss`, and `denoising_error` without weights."""
    loss = (weights * errors).mean()
    return loss, {"loss": float(loss.detach()), "denoising_error": float(errors.detach().mean())}
