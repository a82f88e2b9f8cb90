"""Denoising Diffusion Policy Optimization, DDPO-IS and DDPO-SF (Black et al. 2023, https://arxiv.org/abs/2305.13301).

Each denoising step is an action, and the final image's reward is the return of all of them. What it is compared with is the
rewards of the same prompt, or a learned value of the denoising state (PPO, Schulman et al. 2017).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusion.ddim import gaussian_kl, gaussian_log_prob
from diffusion.ddpo_config import DDPOConfig, validate
from diffusion.diagnosis import diagnose
from diffusion.diversity import DiversityWatch
from diffusion.policy import DiffusionPolicy
from diffusion.policy_gradient import train_on_steps
from diffusion.rollouts import (
    check_numbers,
    draw_prompts,
    own_rows,
    reward_figures,
    sample_and_rate,
    select,
)
from diffusion.training import Run, begin, hold_to_budget, load_reward, path_kl
from diffusion.value import ValueBaseline
from mmrlhf.data import read_prompts
from mmrlhf.errors import UserError
from mmrlhf.rl import PromptStatistics, clipped_surrogate
from mmrlhf.runs import RunResult
from mmrlhf.seeding import seeded
from mmrlhf.training import Loss, Stateful
from mmrlhf.types import Rollout


def train(
    config: DDPOConfig,
    *,
    reward: Callable[..., Tensor] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> RunResult:
    """Run the algorithm; `reward(images, prompts)` stands in for the one that `config.reward` names, `on_epoch` gets each line.

    Writes the folder that `DDPOConfig.out` describes. In a line of metrics, `reward_mean` and `kl` are of the policy that drew
    the epoch's samples, so they belong together, and the rest is of the training on them.
    UserError where rewards or gradients are no longer numbers: the last checkpoint stays as it is.
    """
    validate(config)
    prompts = read_prompts(config.prompts)
    reward = load_reward(config.reward, config.device) if reward is None else reward
    diversity = DiversityWatch(config.embedder)
    statistics = PromptStatistics(config.prompt_buffer_size, config.prompt_min_count)
    value = ValueBaseline(
        seed=config.seed, learning_rate=config.value_learning_rate, clip=config.value_clip or math.inf,
        epochs=config.value_epochs, decay=config.value_lambda,
    )  # fmt: skip
    parts: dict[str, Stateful] = {"statistics": statistics, "value": value}
    run = begin("ddpo", config, prompts, parts=parts, on_epoch=on_epoch)
    check_has_noise(run.policy, config.num_steps)
    for epoch in run.epochs():
        generator = seeded(config.seed, epoch)  # a fresh one each epoch, so that resuming needs no generator state
        chosen = draw_prompts(prompts, config.samples_per_epoch, config.samples_per_prompt, generator)
        rollout, rewards = sample_and_rate(run.policy, reward, chosen, config.sample_batch_size, generator)
        check_numbers(run, rollout, rewards, epoch)
        rows = own_rows(len(chosen), config.sample_batch_size)
        fitted: dict[str, float] = {}
        if config.baseline == "value":
            order = seeded(config.seed, epoch, 1)
            advantages, fitted = value.judge(run.policy, rollout, rows, rewards, config.train_batch_size, order)
        else:
            advantages = statistics.advantages(chosen, rewards).unsqueeze(1).expand(-1, rollout.log_probs.shape[1])
        measured = select(rollout, (rows < config.kl_samples).nonzero().flatten())
        kl, before = path_kl(run.policy, measured), run.snapshot()
        figures = improve(run, rollout, rows, advantages, config, generator, epoch)
        hold_to_budget(run, measured, before)
        line = {"epoch": epoch, "samples": len(chosen), "seconds": run.seconds(), **reward_figures(rewards), "kl": kl}
        line |= diversity.figures(rollout) | figures | fitted
        run.record(line, diagnose([*run.metrics, line], config.clip_range), ("reward_mean", "kl", "clip_fraction"))
    return run.close()


def check_has_noise(policy: DiffusionPolicy, num_steps: int) -> None:
    """UserError where no step has noise, and so none a log-probability."""
    if policy.sampler.gaussian_steps() == 0:
        raise UserError(f"--num-steps got {num_steps}, of which none has noise: allowed is 2 or more for this model")


def improve(
    run: Run,
    rollout: Rollout,
    drawn: Int[Tensor, " n"],
    advantages: Float[Tensor, "b t"],
    config: DDPOConfig,
    generator: torch.Generator,
    epoch: int,
) -> dict[str, float]:
    """Train on one epoch's samples, of which this process drew those that `drawn` names."""
    an_update = config.train_batch_size * config.gradient_accumulation
    return train_on_steps(
        run,
        rollout,
        drawn,
        advantages,
        lambda batch, own: step_loss(run.policy, batch, own, config),
        generator,
        epoch,
        advantage_clip=config.advantage_clip,
        passes=config.inner_epochs,
        samples_an_update=len(advantages) if config.algorithm == "score-function" else an_update,
        share=config.timestep_fraction,
    )


def step_loss(policy: DiffusionPolicy, batch: Rollout, advantages: Float[Tensor, "b 1"], config: DDPOConfig) -> Loss:
    """The loss of `single_steps` (clipped surrogate, or −A log p), and the penalty on their KL to the start."""
    reference = None
    if config.kl_weight:
        with policy.reference(), torch.no_grad():
            _, reference, _ = next(policy.each_step(batch))
    drawn, mean, sigma = next(policy.each_step(batch))
    log_probs, old = gaussian_log_prob(drawn, mean, sigma).unsqueeze(1), batch.log_probs
    loss, figures = clipped_surrogate(log_probs, old, advantages.to(old.device), config.clip_range)
    if config.algorithm == "score-function":
        loss = -(log_probs * advantages.to(old.device)).mean()
    if reference is not None:
        loss = loss + config.kl_weight * gaussian_kl(mean, reference, sigma).mean()
    return loss, {"loss": float(loss.detach()), **figures}
