"""D3PO: direct preference optimization of denoising steps, on the policy's own pairs (Yang et al. 2023, https://arxiv.org/abs/2311.13231).

Two images of a prompt start from the same noise; the reward says which is better; each step of the better one is then
preferred to the same step of the other.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from diffusion.ddpo import check_has_noise
from diffusion.dpo import DPOConfig
from diffusion.noise import gaussian, own_share
from diffusion.policy import DiffusionPolicy
from diffusion.preference_losses import d3po_loss
from diffusion.rollouts import (
    check_numbers,
    draw_prompts,
    joined,
    own_rows,
    rate,
    reward_figures,
    select,
    single_steps,
    whole,
)
from diffusion.training import Run, begin, hold_to_budget, load_policy, load_reward, path_kl
from mmrlhf.data import read_prompts
from mmrlhf.distributed import is_main_process, own_part
from mmrlhf.errors import UserError
from mmrlhf.figures import Figures
from mmrlhf.runs import RunResult
from mmrlhf.seeding import seeded
from mmrlhf.training import Loss
from mmrlhf.types import Rollout

NOTHING_TRAINED = {"loss": 0.0, "implicit_accuracy": 0.5, "implicit_margin": 0.0, "grad_norm": 0.0, "updates": 0}
NO_WINNERS = {
    "no winners": (
        "in no pair did the reward tell the two images of a prompt apart, so there is nothing to learn from: check the reward on "
        "two different images, or draw with more spread (--eta 1)"
    )
}


def train(
    config: DPOConfig,
    *,
    reward: Callable[..., Tensor] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> RunResult:
    """Run the algorithm; `config` is a valid one of method d3po; see `diffusion.dpo.train`, which calls this.

    In a line of metrics, the rewards and `kl` are of the policy that drew the epoch's pairs, so they belong together, and the
    rest is of the training on them. UserError where rewards or gradients are no longer numbers.
    """
    if config.prompts is None or config.reward is None:
        raise UserError("d3po got no --prompts or no --reward: give both")
    prompts = read_prompts(config.prompts)
    reward = load_reward(config.reward, config.device) if reward is None else reward
    policy = load_policy(config)
    check_has_noise(policy, config.num_steps)
    run = begin("d3po", config, prompts, policy=policy, on_epoch=on_epoch)
    for epoch in run.epochs():
        generator = seeded(config.seed, epoch)
        chosen = draw_prompts(prompts, config.pairs_per_epoch, 1, generator)
        rollout = sample_pairs(policy, chosen, config.sample_batch_size, generator)
        first = own_rows(len(chosen), config.sample_batch_size)
        rows = torch.cat([first, first + len(chosen)])
        rewards = whole(rate(reward, rollout, config.sample_batch_size), rows, 2 * len(chosen))
        check_numbers(run, rollout, rewards, epoch)
        winners, losers = ranked(rewards)
        measured = select(rollout, (rows < config.kl_samples).nonzero().flatten())
        kl, before = path_kl(policy, measured), run.snapshot()
        figures = NOTHING_TRAINED
        if len(winners):
            figures = improve(run, rollout, rows, winners, losers, config, generator, epoch)
        hold_to_budget(run, measured, before)
        line = {"epoch": epoch, "samples": len(rewards), "seconds": run.seconds(), **reward_figures(rewards), "kl": kl}
        line |= {"pairs": len(winners), "ties": config.pairs_per_epoch - len(winners), **figures}
        run.record(line, {} if len(winners) else NO_WINNERS, ("reward_mean", "implicit_accuracy", "kl"))
    return run.close()


def sample_pairs(policy: DiffusionPolicy, prompts: list[str], batch_size: int, generator: torch.Generator) -> Rollout:
    """Two images of each of `n` prompts, as rows i and n + i, from the same first noise; each process draws `own_rows`."""
    first, second = list[Rollout](), list[Rollout]()
    with tqdm(total=2 * len(prompts), desc="sample", leave=False, unit="image", disable=not is_main_process()) as bar:
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            kept, share = torch.arange(len(own_part(len(batch)))), own_share(generator, len(batch))
            own = batch[share.rows.start : share.rows.stop]
            noise = gaussian((len(own), *policy.latent_shape), share, policy.device)
            for side in (first, second):
                side.append(select(policy.sample(own, share, initial_noise=noise), kept))
                bar.update(len(batch))
    return joined([*first, *second])


def ranked(rewards: Float[Tensor, " two_n"]) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """(rows of the winners, rows of the losers) of the pairs i and n + i; ties and abstentions are left out."""
    first, second = torch.arange(len(rewards)).chunk(2)
    better, worse = rewards[first] > rewards[second], rewards[first] < rewards[second]
    kept = better | worse
    return torch.where(better, first, second)[kept], torch.where(better, second, first)[kept]


def improve(
    run: Run,
    rollout: Rollout,
    drawn: Int[Tensor, " n"],
    winners: Int[Tensor, " pairs"],
    losers: Int[Tensor, " pairs"],
    config: DPOConfig,
    generator: torch.Generator,
    epoch: int,
) -> dict[str, float]:
    """Train on one epoch's pairs: batches of pairs, all of their steps in an order of their own.

    `drawn` says which of the epoch's images the rollout holds: of several processes each trains on the pairs that it drew.
    """
    pairs, count = len(winners), rollout.log_probs.shape[1]
    place = torch.full((2 * config.pairs_per_epoch,), -1)
    place[drawn] = torch.arange(len(drawn))
    first = torch.zeros(1, dtype=torch.long)
    winners, losers = place[winners], place[losers]
    seen, norms = Figures(), []
    own = config.inner_epochs * int((winners >= 0).sum()) * count
    with tqdm(total=own, desc="train", leave=False, unit="step", disable=not is_main_process()) as bar:
        for _ in range(config.inner_epochs):
            order = torch.randperm(pairs, generator=generator)
            steps = torch.rand(pairs, count, generator=generator).argsort(dim=1)
            for group in order.split(config.train_batch_size * config.gradient_accumulation):
                ours = group[winners[group] >= 0]
                # of each pair the first step, the second …; and one to spare
                better, worse = (torch.cat([side[ours].repeat(count), first]) for side in (winners, losers))
                columns = torch.cat([steps[ours].T.flatten(), first])
                places, spare = torch.arange(len(ours) * count), torch.tensor([len(ours) * count])

                drawn_steps = partial(loss_of, run.policy, rollout, config.beta, better, worse, columns)
                run.learn(places, drawn_steps, len(group) * count, seen, bar, spare)
                norms.append(run.update(epoch))
    return seen.of_epoch(norms)


def loss_of(
    policy: DiffusionPolicy,
    rollout: Rollout,
    beta: float,
    winners: Int[Tensor, " n"],
    losers: Int[Tensor, " n"],
    columns: Int[Tensor, " n"],
    part: Int[Tensor, " k"],
) -> Loss:
    """That of a part of the pairs of steps: rows of the rollout, and a column for both."""
    both = torch.cat([winners[part], losers[part]])
    return step_loss(policy, single_steps(rollout, both, columns[part].repeat(2)), beta)


def step_loss(policy: DiffusionPolicy, batch: Rollout, beta: float) -> Loss:
    """The loss of `single_steps` of pairs, whose winners are the first half of `batch` and losers the second."""
    with policy.reference(), torch.no_grad():
        winners_reference, losers_reference = policy.log_prob(batch).chunk(2)
    winners, losers = policy.log_prob(batch).chunk(2)
    return d3po_loss(winners, losers, winners_reference, losers_reference, beta)
