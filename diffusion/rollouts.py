"""An epoch's samples: which prompts, what the policy drew for them, what the reward says, and parts of it."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from diffusion.policy import DiffusionPolicy
from diffusion.training import TrainingRun
from mmrlhf.errors import UserError
from mmrlhf.types import Rollout


def draw_prompts(prompts: list[str], count: int, repeats: int, generator: torch.Generator) -> list[str]:
    """`count` prompts, each `repeats` times in a row; none comes again before all have come."""
    rows: list[int] = []
    while len(rows) * repeats < count:
        rows += torch.randperm(len(prompts), generator=generator).tolist()
    return [prompts[row] for row in rows for _ in range(repeats)][:count]


def sample_epoch(policy: DiffusionPolicy, prompts: list[str], batch_size: int, generator: torch.Generator) -> Rollout:
    """One rollout of an image for each prompt, drawn `batch_size` at a time."""
    rollouts = []
    with tqdm(total=len(prompts), desc="sample", leave=False, unit="image") as bar:
        for start in range(0, len(prompts), batch_size):
            rollouts.append(policy.sample(prompts[start : start + batch_size], generator))
            bar.update(len(rollouts[-1].prompts))
    tensors = (torch.cat(parts) for parts in list(zip(*rollouts, strict=True))[1:])
    return Rollout(tuple(prompts), *tensors)


@torch.no_grad()
def rate(reward: Callable[..., Tensor], rollout: Rollout, batch_size: int) -> Float[Tensor, " b"]:
    """The reward of each image, on the CPU. UserError where it gives not one number an image."""
    parts = []
    for start in range(0, len(rollout.prompts), batch_size):
        rows = slice(start, start + batch_size)
        parts.append(reward(rollout.images[rows], rollout.prompts[rows]).detach().float().cpu())
    rewards = torch.cat(parts)
    if rewards.shape != (len(rollout.prompts),):
        raise UserError(
            f"the reward gave shape {tuple(rewards.shape)} for {len(rollout.prompts)} images, allowed is one number an image"
        )
    return rewards


def select(rollout: Rollout, rows: Int[Tensor, " n"]) -> Rollout:
    """The samples of a rollout that `rows` names."""
    chosen = rows.to(rollout.log_probs.device)
    return Rollout(tuple(rollout.prompts[row] for row in rows.tolist()), *(tensor[chosen] for tensor in rollout[1:]))


def check_numbers(run: TrainingRun, rollout: Rollout, rewards: Float[Tensor, " b"], epoch: int) -> None:
    """UserError where an image is not a number, a reward is infinite, or most are NaN; a few NaN are abstentions."""
    if not rollout.images.isfinite().all():
        raise run.not_a_number("a generated image", epoch, "lower --learning-rate")
    missing = int(rewards.isnan().sum())
    if rewards.isinf().any() or 2 * missing > len(rewards):
        what = f"the reward ({missing} of {len(rewards)} are NaN, {int(rewards.isinf().sum())} infinite)"
        raise run.not_a_number(what, epoch, "check what the reward says to pictures such as those in samples/")


def reward_figures(rewards: Float[Tensor, " b"]) -> dict[str, float]:
    """Mean and spread of the rewards that are numbers, and how many are not."""
    rated = rewards[rewards.isfinite()]
    mean, spread = float(rated.mean()), float(rated.std(correction=0))
    return {"reward_mean": mean, "reward_std": spread, "abstained": len(rewards) - len(rated)}
