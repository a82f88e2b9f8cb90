"""Flow-GRPO (Liu et al. 2025, https://arxiv.org/abs/2505.05470) and MixGRPO (Li et al. 2025, https://arxiv.org/abs/2507.21802).

Each prompt's samples are judged against one another, and each noisy denoising step of a sample gets its advantage.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusion.ddim import gaussian_kl, gaussian_log_prob
from diffusion.ddpo import check_has_noise
from diffusion.diagnosis import diagnose
from diffusion.diversity import DiversityWatch
from diffusion.flow_sde import FlowCoefficients
from diffusion.grpo_config import GRPOConfig, validate
from diffusion.policy import DiffusionPolicy
from diffusion.policy_gradient import train_on_steps
from diffusion.rollouts import (
    check_numbers,
    draw_prompts,
    own_rows,
    reward_figures,
    sample_and_rate,
    sample_epoch,
    select,
)
from diffusion.sampling import Sampler
from diffusion.training import Run, begin, hold_to_budget, load_policy, load_reward, path_kl
from mmrlhf.data import read_prompts
from mmrlhf.errors import UserError
from mmrlhf.rl import (
    advantages_of_rated,
    clipped_surrogate,
    group_advantages,
    group_spreads,
    leave_one_out_advantages,
)
from mmrlhf.runs import RunResult
from mmrlhf.seeding import seeded
from mmrlhf.training import Loss
from mmrlhf.types import Rollout

ALGORITHMS = {"grpo": group_advantages, "rloo": leave_one_out_advantages}


def train(
    config: GRPOConfig,
    *,
    reward: Callable[..., Tensor] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> RunResult:
    """Run the algorithm; `reward(images, prompts)` stands in for the one that `config.reward` names, `on_epoch` gets each line.

    Writes the folder that `GRPOConfig.out` describes. In a line of metrics, the rewards and `kl` are of the policy that drew
    the epoch's samples, and the rest is of the training on them. `kl` is over all steps, wherever the window is.
    UserError where rewards or gradients are no longer numbers: the last checkpoint stays as it is.
    """
    validate(config)
    prompts = read_prompts(config.prompts)
    reward = load_reward(config.reward, config.device) if reward is None else reward
    diversity = DiversityWatch(config.embedder)
    policy = load_policy(config)
    check_steps(policy, config)
    few, many = policy.sampler, evaluation_sampler(policy, config)
    run = begin("grpo", config, prompts, policy=policy, on_epoch=on_epoch)
    policy.sampler = many  # for the run's pictures, which are drawn between epochs
    for epoch in run.epochs():
        policy.sampler = few
        generator = seeded(config.seed, epoch)
        count = config.prompts_per_epoch * config.samples_per_prompt
        chosen = draw_prompts(prompts, count, config.samples_per_prompt, generator)
        noisy = window(config, few.gaussian_steps(), epoch)
        rollout, rewards = sample_and_rate(policy, reward, chosen, config.sample_batch_size, generator, noisy)
        check_numbers(run, rollout, rewards, epoch)
        groups = rewards.view(config.prompts_per_epoch, config.samples_per_prompt)
        advantages = advantages_of_rated(groups, ALGORITHMS[config.algorithm]).flatten()
        rows = own_rows(count, config.sample_batch_size)
        measured = select(rollout, (rows < config.kl_samples).nonzero().flatten())
        if config.window:  # the rollout knows of the window's steps only
            other = seeded(config.seed, epoch, 1)
            measured = sample_epoch(policy, chosen[: config.kl_samples], config.sample_batch_size, other)
        kl, before = path_kl(policy, measured), run.snapshot()
        figures = improve(run, rollout, rows, advantages, config, generator, epoch)
        hold_to_budget(run, measured, before)
        line = {"epoch": epoch, "samples": count, "seconds": run.seconds(), **reward_figures(rewards), "kl": kl}
        line |= diversity.figures(rollout)
        line |= group_figures(groups) | figures
        run.record(line, diagnose([*run.metrics, line], config.clip_range), ("reward_mean", "kl", "clip_fraction"))
        policy.sampler = many
    return run.close()


def check_steps(policy: DiffusionPolicy, config: GRPOConfig) -> None:
    """UserError where no step has noise, or fewer than the window needs."""
    check_has_noise(policy, config.num_steps)
    possible = policy.sampler.gaussian_steps()
    if config.window > possible:
        raise UserError(
            f"--window got {config.window}, allowed is 0 to {possible}, the steps with noise of --num-steps "
            f"{config.num_steps}"
        )


def evaluation_sampler(policy: DiffusionPolicy, config: GRPOConfig) -> Sampler:
    """Many steps and no noise, for pictures. UserError where the model's schedule cannot be cut into so many."""
    try:
        return policy.family.sampler(config.eval_steps, 0.0, policy.latent_shape)
    except UserError as error:
        raise UserError(f"--eval-steps {config.eval_steps}: {error}") from error


def window(config: GRPOConfig, possible: int, epoch: int) -> range | None:
    """The numbers of an epoch's noisy steps, of those that can have noise; None is all."""
    if config.window == 0:
        return None
    start = epoch // config.window_epochs % (possible - config.window + 1)
    return range(start, start + config.window)


def group_figures(rewards: Float[Tensor, "g n"]) -> dict[str, float]:
    """`mmrlhf.rl.group_spreads`, and rated samples a group."""
    return group_spreads(rewards) | {"rated_per_prompt": int(rewards.isfinite().sum()) / len(rewards)}


def improve(
    run: Run,
    rollout: Rollout,
    drawn: Int[Tensor, " n"],
    advantages: Float[Tensor, " b"],
    config: GRPOConfig,
    generator: torch.Generator,
    epoch: int,
) -> dict[str, float]:
    """Train on one epoch's samples, of which this process drew those that `drawn` names."""
    return train_on_steps(
        run,
        rollout,
        drawn,
        advantages.unsqueeze(1).expand(-1, rollout.log_probs.shape[1]),
        lambda batch, own: step_loss(run.policy, batch, own, config),
        generator,
        epoch,
        advantage_clip=config.advantage_clip,
        passes=config.inner_epochs,
        samples_an_update=config.train_batch_size * config.gradient_accumulation,
    )


def step_loss(policy: DiffusionPolicy, batch: Rollout, advantages: Float[Tensor, "b 1"], config: GRPOConfig) -> Loss:
    """The loss of `single_steps`."""
    kl = None
    reference = None
    if config.kl_weight:
        with policy.reference(), torch.no_grad():
            _, reference, _ = next(policy.each_step(batch))
    drawn, mean, sigma = next(policy.each_step(batch))
    log_probs = gaussian_log_prob(drawn, mean, sigma).unsqueeze(1)
    if reference is not None:
        at = policy.sampler.coefficients(batch.timesteps[:, 0])
        kl = step_kl(mean, reference, at.diffusion if isinstance(at, FlowCoefficients) else at.sigma).unsqueeze(1)
    old = batch.log_probs
    return grpo_loss(log_probs, old, advantages.to(old.device), kl, config.clip_range, config.kl_weight)


def grpo_loss(
    log_probs: Float[Tensor, "b t"],
    old_log_probs: Float[Tensor, "b t"],
    advantages: Float[Tensor, "b 1"],
    kl: Float[Tensor, "b t"] | None,
    clip_range: float,
    kl_weight: float,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The clipped surrogate, and `kl_weight` times the mean of `kl`, the KL of each step to the start (Liu et al. 2025, eq. 4).

    Metrics: those of `clipped_surrogate`, `loss`, and `step_kl` where there is one.
    """
    loss, figures = clipped_surrogate(log_probs, old_log_probs, advantages, clip_range)
    if kl is not None:
        loss = loss + kl_weight * kl.mean()
        figures["step_kl"] = float(kl.detach().mean())
    return loss, {"loss": float(loss.detach()), **figures}


def step_kl(
    mean: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"], diffusion: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """‖mean − mean_ref‖²/(2 s²), averaged over latent dimensions, as Flow-GRPO's public code takes it.

    s is a flow's diffusion, not the spread s√(−dt) of its step: the KL in nats a dimension times −dt, which a penalty weight of
    Flow-GRPO belongs to. DDIM has no such dt: there the step's own σ stands for s, and this is the KL in nats a dimension.
    """
    return gaussian_kl(mean, reference, diffusion) / mean[0].numel()
