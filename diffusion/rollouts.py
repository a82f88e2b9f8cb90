"""An epoch's samples: which prompts, what the policy drew for them, what the reward says, and parts of it."""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from diffusion.noise import own_share
from diffusion.policy import DiffusionPolicy
from diffusion.training import Run
from mmrlhf.distributed import gather, is_main_process, own_part, total
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
    each: Callable[[Rollout], object] = lambda rollout: None,
) -> Rollout:
    """One rollout of an image for each prompt, drawn `batch_size` at a time; of several processes each draws `own_rows`.

    `noisy` are the numbers of the steps that get noise, None all that can. `each` gets every batch as soon as it is drawn.
    """
    rollouts = []
    with tqdm(total=len(prompts), desc="sample", leave=False, unit="image", disable=not is_main_process()) as bar:
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            share = own_share(generator, len(batch))
            rollout = policy.sample([batch[row] for row in share.rows], share, noisy=noisy)
            rollouts.append(select(rollout, torch.arange(len(own_part(len(batch))))))
            each(rollouts[-1])
            bar.update(len(batch))
    return joined(rollouts)


def joined(rollouts: Sequence[Rollout]) -> Rollout:
    """The samples of several rollouts as one, in order; at least one rollout."""
    prompts = tuple(prompt for rollout in rollouts for prompt in rollout.prompts)
    return Rollout(prompts, *(torch.cat(parts) for parts in list(zip(*rollouts, strict=True))[1:]))


def sample_and_rate(
    policy: DiffusionPolicy,
    reward: Callable[..., Tensor],
    prompts: list[str],
    batch_size: int,
    generator: torch.Generator,
    noisy: Collection[int] | None = None,
) -> tuple[Rollout, Float[Tensor, " count"]]:
    """`sample_epoch`, and the reward of each of its images, those of other processes too, on the CPU.

    The reward judges a batch in a thread of its own while the next one is drawn; a model on the CPU, which would compete for
    the cores, does so in between. What it raises, this raises.
    """
    on_cpu = policy.device.type == "cpu"
    # A second team of OpenMP threads would keep the first from waiting at the ready: drawing took a fifth more time.
    alone: dict[str, Any] = {"initializer": torch.set_num_threads, "initargs": (1,)} if on_cpu else {}
    with ThreadPoolExecutor(max_workers=1, **alone) as judge:
        ask = called if on_cpu and hasattr(reward, "to") else judge.submit
        waiting = list[Future[Tensor]]()
        try:
            rollout = sample_epoch(
                policy, prompts, batch_size, generator, noisy,
                each=lambda part: waiting.append(ask(judged, reward, part)),
            )  # fmt: skip
            given = [part.result() for part in waiting]
        except BaseException:
            judge.shutdown(wait=False, cancel_futures=True)
            raise
    sizes = [min(batch_size, len(prompts) - start) for start in range(0, len(prompts), batch_size)]
    whole = [gather(part.unsqueeze(1), size).squeeze(1) for part, size in zip(given, sizes, strict=True)]
    return rollout, torch.cat(whole)


def called(work: Callable[..., Tensor], *given: Any) -> "Future[Tensor]":
    """What `submit` gives, of work that is done at once."""
    done = Future[Tensor]()
    done.set_result(work(*given))
    return done


def own_rows(count: int, batch_size: int) -> Int[Tensor, " n"]:
    """Which of an epoch's `count` samples this process drew, in the order of its rollout: all, where it is alone."""
    starts = range(0, count, batch_size)
    own = [start + row for start in starts for row in own_part(min(batch_size, count - start))]
    return torch.tensor(own, dtype=torch.long)


def whole(part: Float[Tensor, " n *shape"], rows: Int[Tensor, " n"], count: int) -> Float[Tensor, " count *shape"]:
    """What every process has of its `own_rows`, those of this one at `rows`, as all `count` of them; without gradients."""
    everything = part.new_zeros(count, *part.shape[1:])
    everything[rows.to(part.device)] = part
    return total(everything)


def rate(reward: Callable[..., Tensor], rollout: Rollout, batch_size: int) -> Float[Tensor, " b"]:
    """The reward of each image of a rollout, so many at a time, on the CPU."""
    return torch.cat(
        [judged(reward, select(rollout, rows)) for rows in torch.arange(len(rollout.prompts)).split(batch_size)]
    )


@torch.no_grad()
def judged(reward: Callable[..., Tensor], rollout: Rollout) -> Float[Tensor, " b"]:
    """The reward of each image of one batch, on the CPU."""
    count = len(rollout.prompts)
    given = one_each(reward(rollout.images, rollout.prompts), count) if count else torch.zeros(0)
    return given.detach().float().cpu()


def one_each(given: Tensor, count: int) -> Float[Tensor, " count"]:
    """What a reward gave for so many images. UserError where that is not one number an image."""
    if given.shape != (count,):
        raise UserError(
            f"the reward gave shape {tuple(given.shape)} for {count} images, allowed is one number an image"
        )
    return given


def select(rollout: Rollout, rows: Int[Tensor, " n"]) -> Rollout:
    """The samples of a rollout that `rows` names."""
    chosen = rows.to(rollout.log_probs.device)
    return Rollout(tuple(rollout.prompts[row] for row in rows.tolist()), *(tensor[chosen] for tensor in rollout[1:]))


def single_steps(rollout: Rollout, rows: Int[Tensor, " n"], columns: Int[Tensor, " n"]) -> Rollout:
    """One denoising step of each of some samples, as a rollout of one step; its images are not there (zeros)."""
    row, column = (place.to(rollout.log_probs.device) for place in (rows, columns))
    states = rollout.latents[row, column].unsqueeze(1), rollout.next_latents[row, column].unsqueeze(1)
    times, log_probs = rollout.timesteps[row, column].unsqueeze(1), rollout.log_probs[row, column].unsqueeze(1)
    images = rollout.images.new_zeros(1).expand(len(rows), *rollout.images.shape[1:])
    prompts = tuple(rollout.prompts[place] for place in rows.tolist())
    return Rollout(prompts, *states, times, log_probs, images, rollout.clean[row])


def check_numbers(run: Run, rollout: Rollout, rewards: Float[Tensor, " b"], epoch: int) -> None:
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


def cut(advantages: Float[Tensor, "*shape"], limit: float) -> tuple[Float[Tensor, "*shape"], float]:
    """The advantages cut to ±limit, and the share of them that this changes."""
    return advantages.clamp(-limit, limit), float((advantages.abs() > limit).float().mean())
