"""Denoising Diffusion Policy Optimization, DDPO-IS and DDPO-SF (Black et al. 2023, https://arxiv.org/abs/2305.13301).

Each denoising step is an action, and the final image's reward is the return of all of them.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from diffusion.ddim import gaussian_kl, gaussian_log_prob
from diffusion.ddpo_config import DDPOConfig, validate
from diffusion.diagnosis import diagnose
from diffusion.noise import seeded
from diffusion.policy import DiffusionPolicy
from diffusion.rollouts import (
    Figures,
    check_numbers,
    draw_prompts,
    own_rows,
    rate,
    reward_figures,
    sample_epoch,
    select,
)
from diffusion.runs import RunResult
from diffusion.training import TrainingRun, load_reward
from mmrlhf.data import read_prompts
from mmrlhf.distributed import is_main_process
from mmrlhf.errors import UserError
from mmrlhf.rl import PromptStatistics, clipped_surrogate
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
    statistics = PromptStatistics(config.prompt_buffer_size, config.prompt_min_count)
    run = TrainingRun("ddpo", config, prompts, parts={"statistics": statistics}, several_processes=True)
    check_has_noise(run.policy, config.num_steps)
    reward = load_reward(config.reward, config.device) if reward is None else reward
    for epoch in run.epochs():
        generator = seeded(config.seed, epoch)  # a fresh one each epoch, so that resuming needs no generator state
        chosen = draw_prompts(prompts, config.samples_per_epoch, config.samples_per_prompt, generator)
        rollout = sample_epoch(run.policy, chosen, config.sample_batch_size, generator)
        rewards = rate(reward, rollout, config.sample_batch_size, len(chosen))
        check_numbers(run, rollout, rewards, epoch)
        advantages = statistics.advantages(chosen, rewards).clamp(-config.advantage_clip, config.advantage_clip)
        rows = own_rows(len(chosen), config.sample_batch_size)
        measured = select(rollout, (rows < config.kl_samples).nonzero().flatten())
        kl, before = run.kl(measured), run.snapshot()
        figures = improve(run, rollout, rows, advantages, config, generator, epoch)
        run.hold_to_budget(measured, before)
        line = {"epoch": epoch, "samples": len(chosen), "seconds": run.seconds(), **reward_figures(rewards), "kl": kl}
        problems = diagnose([*run.metrics, line | figures], config.clip_range)
        line = run.record(line | figures, problems, ("reward_mean", "kl", "clip_fraction"))
        if on_epoch is not None:
            on_epoch(line)
    return run.close()


def check_has_noise(policy: DiffusionPolicy, num_steps: int) -> None:
    """UserError where no step has noise, and so none a log-probability."""
    if policy.sampler.gaussian_steps() == 0:
        raise UserError(f"--num-steps got {num_steps}, of which none has noise: allowed is 2 or more for this model")


def improve(
    run: TrainingRun,
    rollout: Rollout,
    drawn: Int[Tensor, " n"],
    advantages: Float[Tensor, " b"],
    config: DDPOConfig,
    generator: torch.Generator,
    epoch: int,
) -> dict[str, float]:
    """Train on one epoch's samples: batches of samples, all (or a share) of their steps in an order of their own.

    `drawn` says which of the epoch's `b` samples the rollout holds: of several processes each trains on those that it drew.
    """
    samples, count = len(advantages), rollout.log_probs.shape[1]
    trained = max(1, int(config.timestep_fraction * count))
    an_update = config.train_batch_size * config.gradient_accumulation
    if config.algorithm == "score-function":
        an_update = samples
    place = torch.full((samples,), -1)
    place[drawn] = torch.arange(len(drawn))
    seen, norms = Figures(), []
    with tqdm(
        total=config.inner_epochs * len(drawn) * trained,
        desc="train",
        leave=False,
        unit="step",
        disable=not is_main_process(),
    ) as bar:
        for _ in range(config.inner_epochs):
            order = torch.randperm(samples, generator=generator)
            steps = torch.rand(samples, count, generator=generator).argsort(dim=1)[:, :trained]
            for group in order.split(an_update):
                for batch_rows in group.split(config.train_batch_size):
                    rows = batch_rows[place[batch_rows] >= 0]
                    if len(rows) == 0:
                        continue
                    batch, own = select(rollout, place[rows]), advantages[rows].unsqueeze(1)
                    for column in steps[rows].split(1, dim=1):
                        loss, figures = step_loss(run.policy, batch, column, own, config)
                        (loss * len(rows) / (len(group) * trained)).backward()
                        seen.add(len(rows), figures)
                        bar.update(len(rows))
                norms.append(run.update(epoch))
    return seen.means() | {"grad_norm": sum(norms) / len(norms), "updates": len(norms)}


def step_loss(
    policy: DiffusionPolicy,
    batch: Rollout,
    column: Int[Tensor, "b 1"],
    advantages: Float[Tensor, "b 1"],
    config: DDPOConfig,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The loss of one denoising step of each sample (clipped surrogate, or −A log p), and the penalty on its KL to the start."""
    reference = None
    if config.kl_weight:
        with policy.reference(), torch.no_grad():
            _, reference, _ = next(policy.each_step(batch, column))
    drawn, mean, sigma = next(policy.each_step(batch, column))
    log_probs = gaussian_log_prob(drawn, mean, sigma).unsqueeze(1)
    old = batch.log_probs.gather(1, column.to(batch.log_probs.device))
    loss, figures = clipped_surrogate(log_probs, old, advantages.to(old.device), config.clip_range)
    if config.algorithm == "score-function":
        loss = -(log_probs * advantages.to(old.device)).mean()
    if reference is not None:
        loss = loss + config.kl_weight * gaussian_kl(mean, reference, sigma).mean()
    return loss, {"loss": float(loss.detach()), **figures}
