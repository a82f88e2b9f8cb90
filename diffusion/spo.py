"""Step-by-step preference optimization, SPO (Liang et al. 2024, https://arxiv.org/abs/2406.04314).

At each step of a window several next latents are drawn from the same latents. The reward of the clean samples that they
foresee tells the best from the worst, which is then preferred to it; the path goes on from one of them at random, so that
a comparison says nothing of the steps before. The paper's judge is trained on noisy latents; here any image reward judges
x̂_0, or a reward of steps that was learnt (see `diffusion.step_rewards`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from diffusion.d3po import NOTHING_TRAINED
from diffusion.ddim import gaussian_log_prob
from diffusion.ddpo import check_has_noise
from diffusion.policy import DiffusionPolicy
from diffusion.preference_losses import d3po_loss
from diffusion.rollouts import (
    check_numbers,
    draw_prompts,
    own_rows,
    rate,
    reward_figures,
    select,
    single_steps,
    whole,
)
from diffusion.spo_config import SPOConfig, validate, window_steps
from diffusion.spo_paths import StepPairs, best_and_worst, sample_paths_of_epoch
from diffusion.step_rewards import StepReward, after_step
from diffusion.training import Run, begin, hold_to_budget, load_policy, load_reward, path_kl
from mmrlhf.data import read_prompts
from mmrlhf.distributed import is_main_process
from mmrlhf.figures import Figures
from mmrlhf.runs import RunResult
from mmrlhf.seeding import seeded
from mmrlhf.training import Loss
from mmrlhf.types import Rollout

NO_WINNERS = {
    "no winners": (
        "at no step did the reward tell the candidates apart, so there is nothing to learn from: check the reward on two "
        "different images, or lower --margin, raise --candidates or draw with more spread (--eta 1)"
    )
}


def train(
    config: SPOConfig,
    *,
    reward: Callable[..., Tensor] | None = None,
    step_reward: StepReward | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> RunResult:
    """Run the algorithm; `reward(images, prompts)` stands in for the one that `config.reward` names, `on_epoch` gets each line.

    `step_reward` compares the candidates in place of the reward, as a `LearnedStepReward` does. Writes the folder that
    `SPOConfig.out` describes. In a line of metrics, the rewards (of the images) and `kl` are of the policy that drew the
    epoch's paths, so they belong together, and the rest is of the training on them; `spread` is the mean difference of the
    scores of best and worst. UserError where rewards or gradients are no longer numbers.
    """
    validate(config)
    prompts = read_prompts(config.prompts)
    reward = load_reward(config.reward, config.device) if reward is None else reward
    policy = load_policy(config)
    check_has_noise(policy, config.num_steps)
    window = window_steps(config.window, len(policy.sampler.timesteps), policy.sampler.gaussian_steps())
    run = begin("spo", config, prompts, policy=policy, on_epoch=on_epoch)
    judge = after_step(reward) if step_reward is None else step_reward
    for epoch in run.epochs():
        generator = seeded(config.seed, epoch)
        chosen = draw_prompts(prompts, config.samples_per_epoch, 1, generator)
        rollout, pairs = sample_paths_of_epoch(policy, chosen, config, window, judge, generator)
        rows, count = own_rows(len(chosen), config.sample_batch_size), len(chosen)
        rewards = whole(rate(reward, rollout, config.sample_batch_size), rows, count)
        scores, decided = whole(pairs.scores, rows, count), whole(pairs.decided.float(), rows, count).cpu() > 0
        check_numbers(run, rollout, rewards, epoch)
        if scores.isinf().any():
            raise run.not_a_number("the reward of a candidate", epoch, "check what the reward says to blurred pictures")
        measured = select(rollout, (rows < config.kl_samples).nonzero().flatten())
        kl, before = path_kl(policy, measured), run.snapshot()
        figures = NOTHING_TRAINED
        if decided.any():
            figures = improve(run, rollout, rows, pairs, decided, window, config, generator, epoch)
        hold_to_budget(run, measured, before)
        line = {"epoch": epoch, "samples": count, "seconds": run.seconds(), **reward_figures(rewards), "kl": kl}
        line |= {
            "pairs": int(decided.sum()),
            "ties": int((~decided).sum()),
            "spread": spread(scores[decided]),
        } | figures
        run.record(line, {} if decided.any() else NO_WINNERS, ("reward_mean", "implicit_accuracy", "kl"))
    return run.close()


def spread(scores: Float[Tensor, "n k"]) -> float:
    """How far the scores of best and worst candidate are apart, in the mean over pairs; 0 where there is none."""
    best, worst, _ = best_and_worst(scores)
    differences = scores.gather(1, best.unsqueeze(1)) - scores.gather(1, worst.unsqueeze(1))
    return float(differences.mean()) if len(scores) else 0.0


def improve(
    run: Run,
    rollout: Rollout,
    drawn: Int[Tensor, " n"],
    pairs: StepPairs,
    decided: Bool[Tensor, "paths s"],
    window: range,
    config: SPOConfig,
    generator: torch.Generator,
    epoch: int,
) -> dict[str, float]:
    """Train on one epoch's pairs: an update is on those of some paths, whose steps come in an order of their own.

    `drawn` says which of the epoch's paths the rollout and the pairs hold: of several processes each trains on those that it
    drew. `decided` says of all paths where there is a pair.
    """
    seen, norms = Figures(), []
    place = torch.full((len(decided),), -1)
    place[drawn] = torch.arange(len(drawn))
    first = torch.zeros(1, dtype=torch.long)
    own = config.inner_epochs * int(decided[drawn].sum())
    with tqdm(total=own, desc="train", leave=False, unit="pair", disable=not is_main_process()) as bar:
        for _ in range(config.inner_epochs):
            order = torch.randperm(len(decided), generator=generator)
            for paths in order.split(config.train_batch_size * config.gradient_accumulation):
                where = decided[paths].nonzero()
                where = where[torch.randperm(len(where), generator=generator)]
                if len(where) == 0:
                    continue
                rows, steps = place[paths[where[:, 0]]], where[:, 1]
                rows, steps = (torch.cat([each[rows >= 0], first]) for each in (rows, steps))  # and one to spare
                compared = partial(loss_of, run.policy, rollout, pairs, window, config.beta, rows, steps)
                places, spare = torch.arange(len(rows) - 1), torch.tensor([len(rows) - 1])
                run.learn(places, compared, len(where), seen, bar, spare)
                norms.append(run.update(epoch))
    return seen.of_epoch(norms)


def loss_of(
    policy: DiffusionPolicy,
    rollout: Rollout,
    pairs: StepPairs,
    window: range,
    beta: float,
    rows: Int[Tensor, " n"],
    steps: Int[Tensor, " n"],
    part: Int[Tensor, " k"],
) -> Loss:
    """That of a part of the pairs: rows of the rollout, and steps counted from the window's start."""
    row, step = rows[part], steps[part]
    both = pairs.winners[row, step], pairs.losers[row, step]
    return step_loss(policy, single_steps(rollout, row, step + window.start), *both, beta)


def step_loss(
    policy: DiffusionPolicy,
    batch: Rollout,
    winners: Float[Tensor, "b c h w"],
    losers: Float[Tensor, "b c h w"],
    beta: float,
) -> Loss:
    """The loss of `single_steps`, one of each of `b` pairs; winner and loser come from the same latents, and so from one pass."""
    with policy.reference(), torch.no_grad():
        _, reference, sigma = next(policy.each_step(batch))
    _, mean, _ = next(policy.each_step(batch))
    won, lost, won_before, lost_before = (
        gaussian_log_prob(side, middle, sigma).unsqueeze(1)
        for middle in (mean, reference)
        for side in (winners, losers)
    )
    return d3po_loss(won, lost, won_before, lost_before, beta)
