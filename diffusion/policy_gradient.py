"""What the policy gradient methods share: training on the denoising steps of an epoch's samples, each with its advantage."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from diffusion.diagnosis import update_size
from diffusion.rollouts import cut, single_steps
from diffusion.training import Run
from mmrlhf.distributed import is_main_process
from mmrlhf.figures import Figures
from mmrlhf.training import Loss
from mmrlhf.types import Rollout

StepLoss = Callable[[Rollout, Float[Tensor, "n 1"]], Loss]
"""(`single_steps`, the advantage of each) -> their mean loss, and figures."""


def train_on_steps(
    run: Run,
    rollout: Rollout,
    drawn: Int[Tensor, " n"],
    advantages: Float[Tensor, "b t"],
    step_loss: StepLoss,
    generator: torch.Generator,
    epoch: int,
    *,
    advantage_clip: float,
    passes: int = 1,
    samples_an_update: int,
    share: float = 1.0,
) -> dict[str, float]:
    """So many passes over the epoch's samples, in an order of their own; each update is on all steps of some (or a share).

    `drawn` says which of the epoch's `b` samples the rollout holds: of several processes each trains on those that it drew.
    """
    samples, count = advantages.shape
    advantages, clipped = cut(advantages, advantage_clip)
    trained = max(1, int(share * count))
    place = torch.full((samples,), -1)
    place[drawn] = torch.arange(len(drawn))
    first = torch.zeros(1, dtype=torch.long)
    seen, norms, sizes = Figures(), [], []
    whole = passes * len(drawn) * trained
    with tqdm(total=whole, desc="train", leave=False, unit="step", disable=not is_main_process()) as bar:
        for _ in range(passes):
            order = torch.randperm(samples, generator=generator)
            steps = torch.rand(samples, count, generator=generator).argsort(dim=1)[:, :trained]
            for group in order.split(samples_an_update):
                own = group[place[group] >= 0]
                # of each sample the first step, the second …; and one to spare
                rows, columns = torch.cat([own.repeat(trained), drawn[:1]]), torch.cat([steps[own].T.flatten(), first])
                drawn_steps = partial(loss_of, rollout, place, advantages, step_loss, rows, columns)
                places, spare = torch.arange(len(own) * trained), torch.tensor([len(own) * trained])
                run.learn(places, drawn_steps, len(group) * trained, seen, bar, spare)
                norms.append(run.update(epoch))
                sizes.append(update_size(run.optimizer))
    return seen.of_epoch(norms) | {"advantage_clipped": clipped, "update_size": sum(sizes) / len(sizes)}


def loss_of(
    rollout: Rollout,
    place: Int[Tensor, " b"],
    advantages: Float[Tensor, "b t"],
    step_loss: StepLoss,
    rows: Int[Tensor, " n"],
    columns: Int[Tensor, " n"],
    part: Int[Tensor, " k"],
) -> Loss:
    """That of a part of the steps (rows, columns)."""
    row, column = rows[part], columns[part]
    return step_loss(single_steps(rollout, place[row], column), advantages[row, column].unsqueeze(1))
