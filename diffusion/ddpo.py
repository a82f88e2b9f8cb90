"""Denoising Diffusion Policy Optimization with importance sampling, DDPO-IS (Black et al. 2023, https://arxiv.org/abs/2305.13301).

Each denoising step is an action, and the final image's reward is the return of all of them.
"""

import copy
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from diffusion.ddim import gaussian_kl, gaussian_log_prob
from diffusion.ddpo_config import DDPOConfig, validate
from diffusion.diagnosis import diagnose
from diffusion.generate import generate_images
from diffusion.loading import pick_device
from diffusion.noise import seeded
from diffusion.policy import DiffusionPolicy
from diffusion.rollouts import draw_prompts, rate, sample_epoch, select
from diffusion.runs import (
    CHECKPOINT,
    RunResult,
    check_folder,
    claim_folder,
    read_checkpoint,
    settings,
    write_metrics,
)
from mmrlhf.checkpoint import save_checkpoint
from mmrlhf.data import read_prompts
from mmrlhf.errors import UserError
from mmrlhf.images import grid, save_image
from mmrlhf.rl import PromptStatistics, clipped_surrogate
from mmrlhf.types import Rollout

GRID_IMAGES = 16
MAY_DIFFER = ("out", "epochs", "resume", "save_every", "images_every", "kl_budget", "device")


class State(NamedTuple):
    """What training changes; all else (prompts and noise too) follows from the config and the epoch's number."""

    policy: DiffusionPolicy
    optimizer: torch.optim.Optimizer
    statistics: PromptStatistics
    metrics: list[dict[str, Any]]
    stopped: str = ""
    """Why the run ended early, "" where it did not."""


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
    wanted = settings(config, prompts)
    check_folder(config.out, wanted, resume=config.resume, may_differ=MAY_DIFFER)
    reward = load_reward(config) if reward is None else reward
    policy, optimizer, statistics, metrics, stopped = start_or_resume(config)
    claim_folder(config.out, wanted)
    write_metrics(config.out, metrics)

    bar = tqdm(range(len(metrics), config.epochs), initial=len(metrics), total=config.epochs, desc="ddpo", unit="epoch")
    for epoch in bar:
        if stopped:
            break
        save_samples(policy, prompts, epoch, config)
        started = time.monotonic()
        generator = seeded(config.seed, epoch)  # a fresh one each epoch, so that resuming needs no generator state
        chosen = draw_prompts(prompts, config.samples_per_epoch, config.samples_per_prompt, generator)
        rollout = sample_epoch(policy, chosen, config.sample_batch_size, generator)
        rewards = rate(reward, rollout, config.sample_batch_size)
        check_numbers(rollout, rewards, epoch, config)
        advantages = statistics.advantages(chosen, rewards).clamp(-config.advantage_clip, config.advantage_clip)
        measured = select(rollout, torch.arange(min(config.kl_samples, len(chosen))))
        kl = float(policy.kl_to_reference(measured))
        before = copy.deepcopy((policy.state_dict(), optimizer.state_dict())) if config.kl_budget else ({}, {})
        figures = improve(policy, optimizer, rollout, advantages, config, generator, epoch)
        if config.kl_budget and (next_kl := float(policy.kl_to_reference(measured))) > config.kl_budget:
            policy.load_state_dict(before[0])
            optimizer.load_state_dict(before[1])
            stopped = f"the next KL to the start would be {next_kl:.3g} nats, over the budget of {config.kl_budget:g}"

        line: dict[str, Any] = {"epoch": epoch, "samples": len(chosen), "seconds": time.monotonic() - started}
        line |= {**reward_figures(rewards), "kl": kl, **figures}
        line["problems"] = report_problems(metrics, line, config.clip_range)
        metrics.append(line)
        if (epoch + 1) % config.save_every == 0 or epoch + 1 == config.epochs or stopped:
            save_run(State(policy, optimizer, statistics, metrics, stopped), config)
        write_metrics(config.out, metrics)
        bar.set_postfix(reward=f"{line['reward_mean']:.4g}", kl=f"{kl:.3g}", clipped=f"{line['clip_fraction']:.2f}")
        if on_epoch is not None:
            on_epoch(line)
    bar.close()
    save_samples(policy, prompts, len(metrics), config, last=True)
    where = policy.save(config.out)
    print(f"{'stopped: ' + stopped + '; ' if stopped else ''}{len(metrics)} epochs; the weights to load are in {where}")
    return RunResult(config.out, metrics, stopped)


def start_or_resume(config: DDPOConfig) -> State:
    """The state of the last checkpoint, or the start where there is none.

    A run that its KL budget stopped stays stopped, unless the budget is higher now or gone.
    """
    policy = load_policy(config)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.learning_rate, betas=(0.9, 0.999), weight_decay=1e-4)
    statistics = PromptStatistics(config.prompt_buffer_size, config.prompt_min_count)
    saved = read_checkpoint(config.out)
    if saved is None:
        return State(policy, optimizer, statistics, [])
    policy.load_state_dict(saved["policy"])
    optimizer.load_state_dict(saved["optimizer"])
    statistics.load_state_dict(saved["statistics"])
    stopped = saved.get("stopped", "")
    if stopped and (config.kl_budget is None or config.kl_budget > saved["kl_budget"]):
        stopped = ""
    return State(policy, optimizer, statistics, saved["metrics"], stopped)


def improve(
    policy: DiffusionPolicy,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    advantages: Float[Tensor, " b"],
    config: DDPOConfig,
    generator: torch.Generator,
    epoch: int,
) -> dict[str, float]:
    """Train on one epoch's samples: batches of samples, all (or a share) of their steps in an order of their own."""
    samples, count = rollout.log_probs.shape
    trained = max(1, int(config.timestep_fraction * count))
    an_update = config.train_batch_size * config.gradient_accumulation
    seen, norms = [], []
    with tqdm(total=config.inner_epochs * samples * trained, desc="train", leave=False, unit="step") as bar:
        for _ in range(config.inner_epochs):
            order = torch.randperm(samples, generator=generator)
            steps = torch.rand(samples, count, generator=generator).argsort(dim=1)[:, :trained]
            for group in order.split(an_update):
                for rows in group.split(config.train_batch_size):
                    batch, own = select(rollout, rows), advantages[rows].unsqueeze(1)
                    for column in steps[rows].split(1, dim=1):
                        loss, figures = step_loss(policy, batch, column, own, config)
                        (loss * len(rows) / (len(group) * trained)).backward()
                        seen.append((len(rows), figures))
                        bar.update(len(rows))
                norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
                if not norm.isfinite():
                    raise not_a_number(
                        "the gradient of the loss", epoch, config, "lower --learning-rate or --guidance-scale"
                    )
                optimizer.step()
                optimizer.zero_grad()
                norms.append(float(norm))
    total = sum(size for size, _ in seen)
    overall = {name: sum(size * figures[name] for size, figures in seen) / total for name in seen[0][1]}
    overall["ratio_min"] = min(figures["ratio_min"] for _, figures in seen)
    overall["ratio_max"] = max(figures["ratio_max"] for _, figures in seen)
    return overall | {"grad_norm": sum(norms) / len(norms), "updates": len(norms)}


def step_loss(
    policy: DiffusionPolicy,
    batch: Rollout,
    column: Int[Tensor, "b 1"],
    advantages: Float[Tensor, "b 1"],
    config: DDPOConfig,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The clipped surrogate of one denoising step of each sample, and the penalty on its KL to the start."""
    reference = None
    if config.kl_weight:
        with policy.reference(), torch.no_grad():
            _, reference, _ = next(policy.each_step(batch, column))
    drawn, mean, sigma = next(policy.each_step(batch, column))
    log_probs = gaussian_log_prob(drawn, mean, sigma).unsqueeze(1)
    old = batch.log_probs.gather(1, column.to(batch.log_probs.device))
    loss, figures = clipped_surrogate(log_probs, old, advantages.to(old.device), config.clip_range)
    if reference is not None:
        loss = loss + config.kl_weight * gaussian_kl(mean, reference, sigma).mean()
    return loss, {"loss": float(loss.detach()), **figures}


def check_numbers(rollout: Rollout, rewards: Float[Tensor, " b"], epoch: int, config: DDPOConfig) -> None:
    """UserError where an image is not a number, a reward is infinite, or most are NaN; a few NaN are abstentions."""
    if not rollout.images.isfinite().all():
        raise not_a_number("a generated image", epoch, config, "lower --learning-rate")
    missing = int(rewards.isnan().sum())
    if rewards.isinf().any() or 2 * missing > len(rewards):
        what = f"the reward ({missing} of {len(rewards)} are NaN, {int(rewards.isinf().sum())} infinite)"
        raise not_a_number(what, epoch, config, "check what the reward says to pictures such as those in samples/")


def not_a_number(what: str, epoch: int, config: DDPOConfig, change: str) -> UserError:
    """The error that ends a run whose figures are no longer numbers."""
    saved = config.out / CHECKPOINT
    kept = f"the last good state is {saved}" if saved.exists() else "no checkpoint was written yet"
    return UserError(f"{what} is not a finite number in epoch {epoch}: {change}; {kept}")


def reward_figures(rewards: Float[Tensor, " b"]) -> dict[str, float]:
    """Mean and spread of the rewards that are numbers, and how many are not."""
    rated = rewards[rewards.isfinite()]
    mean, spread = float(rated.mean()), float(rated.std(correction=0))
    return {"reward_mean": mean, "reward_std": spread, "abstained": len(rewards) - len(rated)}


def report_problems(metrics: list[dict[str, Any]], line: dict[str, Any], clip_range: float) -> list[str]:
    """The names of the problems that show in the latest epochs; each is explained on stderr when it first shows."""
    problems = diagnose([*metrics, line], clip_range)
    known = {name for earlier in metrics for name in earlier["problems"]}
    for name in sorted(problems.keys() - known):
        tqdm.write(f"not learning ({name}) in epoch {line['epoch']}: {problems[name]}", file=sys.stderr)
    return sorted(problems)


def save_samples(
    policy: DiffusionPolicy, prompts: list[str], epoch: int, config: DDPOConfig, last: bool = False
) -> None:
    """The first prompts with noise that is the same each time, as OUT/samples/epoch-NNNN.png."""
    if config.images_every == 0 or (epoch % config.images_every and not last):
        return
    shown = [prompts[i % len(prompts)] for i in range(GRID_IMAGES)]
    images = generate_images(policy, shown, seed=config.seed, batch_size=config.sample_batch_size)
    save_image(grid(images, columns=8), config.out / "samples" / f"epoch-{epoch:04d}.png")


def save_run(state: State, config: DDPOConfig) -> None:
    """Write the checkpoint that `start_or_resume` reads, and the LoRA weights so far."""
    saved = {
        "policy": state.policy.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "statistics": state.statistics.state_dict(),
        "metrics": state.metrics,
        "stopped": state.stopped,
        "kl_budget": config.kl_budget,
    }
    save_checkpoint(saved, config.out / CHECKPOINT)
    if config.lora_rank:  # a whole model is only written at the end: the checkpoint already holds its weights
        state.policy.save(config.out)


def load_reward(config: DDPOConfig) -> Callable[..., Tensor]:
    """The reward that `--reward` names, on the run's device where it can move."""
    from mmrlhf.rewards import load_reward as load

    reward = load(config.reward)
    return reward.to(pick_device(config.device)) if hasattr(reward, "to") else reward


def load_policy(config: DDPOConfig) -> DiffusionPolicy:
    """The policy that a config asks for, at its start."""
    policy = DiffusionPolicy.load(
        config.model,
        lora_rank=config.lora_rank,
        num_steps=config.num_steps,
        guidance_scale=config.guidance_scale,
        eta=config.eta,
        device=config.device,
        dtype=config.dtype,
        gradient_checkpointing=config.gradient_checkpointing,
        lora_alpha=config.lora_alpha,
        lora_targets=config.lora_targets,
        seed=config.seed,
    )
    if policy.sampler.gaussian_steps() == 0:
        raise UserError(
            f"--num-steps got {config.num_steps}, of which none has noise: allowed is 2 or more for this model"
        )
    return policy
