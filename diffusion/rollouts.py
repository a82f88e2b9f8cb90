"""An epoch's samples: which prompts, what the policy drew for them, what the reward says, and parts of it."""

from collections.abc import Callable, Collection

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from diffusion.noise import PartOf
from diffusion.policy import DiffusionPolicy
from diffusion.training import TrainingRun
from mmrlhf.distributed import extremes, gather, is_main_process, own_part, total
from mmrlhf.errors import UserError
from mmrlhf.types import Rollout


def draw_prompts(prompts: list[str], count: int, repeats: int, generator: torch.Generator) -> list[str]:
    """`count` prompts, each `repeats` times in a row; none comes again before all have come."""
    rows: list[int] = []
    while len(rows) * repeats < count:
        rows += torch.randperm(len(prompts), generator=generator).tolist()
    return [prompts[row] for row in rows for _ in range(repeats)][:count]


def sample_epoch(
    policy: DiffusionPolicy,
    prompts: list[str],
    batch_size: int,
    generator: torch.Generator,
    noisy: Collection[int] | None = None,
) -> Rollout:
    """One rollout of an image for each prompt, drawn `batch_size` at a time; of several processes each draws `own_rows`.

    `noisy` are the numbers of the steps that get noise, None all that can.
    """
    rollouts = []
    with tqdm(total=len(prompts), desc="sample", leave=False, unit="image", disable=not is_main_process()) as bar:
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            part = own_part(len(batch))
            # a process without a sample in the batch draws one all the same, so that all generators stay in step
            drawn = part if len(part) else range(1)
            rollout = policy.sample([batch[row] for row in drawn], PartOf(generator, drawn, len(batch)), noisy=noisy)
            rollouts.append(select(rollout, torch.arange(len(part))))
            bar.update(len(batch))
    made = tuple(prompt for rollout in rollouts for prompt in rollout.prompts)
    return Rollout(made, *(torch.cat(parts) for parts in list(zip(*rollouts, strict=True))[1:]))


def own_rows(count: int, batch_size: int) -> Int[Tensor, " n"]:
    """Which of an epoch's `count` samples this process drew, in the order of its rollout: all, where it is alone."""
    starts = range(0, count, batch_size)
    return torch.tensor([start + row for start in starts for row in own_part(min(batch_size, count - start))])


@torch.no_grad()
def rate(
    reward: Callable[..., Tensor], rollout: Rollout, batch_size: int, count: int | None = None
) -> Float[Tensor, " count"]:
    """The reward of each of the epoch's `count` images (None: of those of the rollout), on the CPU.

    UserError where it gives not one number an image.
    """
    count = len(rollout.prompts) if count is None else count
    parts, done = [], 0
    for start in range(0, count, batch_size):
        size = min(batch_size, count - start)
        rows = slice(done, done + len(own_part(size)))
        done = rows.stop
        if rows.start == rows.stop:
            given = torch.zeros(0)
        else:
            given = reward(rollout.images[rows], rollout.prompts[rows]).detach().float().cpu()
        if given.shape != (rows.stop - rows.start,):
            raise UserError(
                f"the reward gave shape {tuple(given.shape)} for {rows.stop - rows.start} images, allowed is one number an image"
            )
        parts.append(gather(given.unsqueeze(1), size).squeeze(1))
    return torch.cat(parts)


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


class Figures:
    """Figures of single batches, to be averaged over samples, and over processes."""

    def __init__(self) -> None:
        self.samples = 0
        self.sums: dict[str, float] = {}
        self.lowest, self.highest = float("inf"), float("-inf")

    def add(self, samples: int, figures: dict[str, float]) -> None:
        """Those of a batch of so many samples."""
        self.samples += samples
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + samples * value
        self.lowest = min(self.lowest, figures.get("ratio_min", self.lowest))
        self.highest = max(self.highest, figures.get("ratio_max", self.highest))

    def means(self) -> dict[str, float]:
        """The mean of each; of `ratio_min` and `ratio_max` the extremes."""
        names = sorted(self.sums)
        sums = total(torch.tensor([self.samples, *(self.sums[name] for name in names)], dtype=torch.float64)).tolist()
        means = {name: value / sums[0] for name, value in zip(names, sums[1:], strict=True)}
        if "ratio_min" in means:
            means["ratio_min"], means["ratio_max"] = extremes(self.lowest, self.highest)
        return means
