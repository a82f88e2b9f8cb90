"""Denoising paths with several candidates at each step of a window, as step-by-step preference optimization draws them."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from diffusion.ddim import gaussian_log_prob
from diffusion.families import Conditions
from diffusion.noise import PartOf, gaussian, own_share
from diffusion.policy import DiffusionPolicy
from diffusion.rollouts import joined, select
from diffusion.sampling import column
from diffusion.spo_config import SPOConfig
from diffusion.step_rewards import StepReward, noise_levels, predict_clean, values_of
from mmrlhf.distributed import is_main_process, own_part
from mmrlhf.types import Rollout

Pictures = Float[Tensor, "b 3 height width"]


class StepPairs(NamedTuple):
    """Of `b` paths the best and worst next latents at each of the `s` steps of the window, whether they are a pair, and the
    scores of all `k` candidates."""

    winners: Float[Tensor, "b s c h w"]
    losers: Float[Tensor, "b s c h w"]
    decided: Bool[Tensor, "b s"]
    scores: Float[Tensor, "b s k"]


class Candidates(NamedTuple):
    """Next latents of one step, their scores, and the one to go on from: it, the network's output for it, what that foresees."""

    drawn: Float[Tensor, "b k c h w"]
    scores: Float[Tensor, "b k"]
    following: Float[Tensor, "b c h w"]
    output: Float[Tensor, "b c h w"]
    foreseen: Pictures


def sample_paths_of_epoch(
    policy: DiffusionPolicy,
    prompts: list[str],
    config: SPOConfig,
    window: range,
    judge: StepReward,
    generator: torch.Generator,
) -> tuple[Rollout, StepPairs]:
    """A path for each prompt and its pairs, `sample_batch_size` paths at a time; of several processes each draws `own_rows`."""
    rollouts, pairs = list[Rollout](), list[StepPairs]()
    with tqdm(total=len(prompts), desc="sample", leave=False, unit="image", disable=not is_main_process()) as bar:
        for start in range(0, len(prompts), config.sample_batch_size):
            batch = prompts[start : start + config.sample_batch_size]
            kept, share = len(own_part(len(batch))), own_share(generator, len(batch))
            own = batch[share.rows.start : share.rows.stop]
            rollout, compared = sample_paths(
                policy, own, window, judge, share, candidates=config.candidates, margin=config.margin
            )
            rollouts.append(select(rollout, torch.arange(kept)))
            pairs.append(StepPairs(*(tensor[:kept] for tensor in compared)))
            bar.update(len(batch))
    return joined(rollouts), StepPairs(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))


@torch.no_grad()
def sample_paths(
    policy: DiffusionPolicy,
    prompts: list[str],
    window: range,
    judge: StepReward,
    generator: torch.Generator | PartOf,
    *,
    candidates: int = 4,
    margin: float = 0.0,
) -> tuple[Rollout, StepPairs]:
    """One path a prompt and, at the steps of `window`, the best and worst of some candidates.

    A candidate drawn at random from some is one drawn as ever: the path is the policy's own, as that of `policy.sample`.
    """
    sampler, context, shape = policy.sampler, policy.context(prompts), (len(prompts), *policy.latent_shape)
    latents, noisy = gaussian(shape, generator, policy.device), sampler.gaussian_steps()
    output: Tensor | None = None
    foreseen: Pictures | None = None
    before, after, log_probs, compared = list[Tensor](), list[Tensor](), list[Tensor](), list[StepPairs]()
    for number, step in enumerate(sampler.timesteps.to(policy.device)):
        timesteps = step.expand(len(prompts))
        if number in window and foreseen is None:
            output, foreseen = foresee(policy, context, number, latents)
        elif output is None:
            output = policy.predict(latents, sampler.times(timesteps), context)
        at = sampler.coefficients(timesteps, noisy=number < noisy)
        mean = sampler.mean(output, latents, at)
        if number in window and foreseen is not None:
            try_out = partial(foresee_and_judge, policy, prompts, context, judge, number, foreseen)
            found = draw_candidates(mean, at.sigma, try_out, candidates, generator)
            compared.append(paired(found, margin))
            following, output, foreseen = found.following, found.output, found.foreseen
        else:
            noise = gaussian(shape, generator, policy.device) if number < noisy else torch.zeros_like(mean)
            following, output, foreseen = mean + column(at.sigma) * noise, None, None
        if number < noisy:
            before.append(latents)
            after.append(following)
            log_probs.append(gaussian_log_prob(following, mean, at.sigma))
        latents = following
    rollout = Rollout(
        tuple(prompts),
        torch.stack(before, dim=1),
        torch.stack(after, dim=1),
        sampler.timesteps[:noisy].to(policy.device).expand(len(prompts), -1),
        torch.stack(log_probs, dim=1),
        policy.decode(latents),
        latents,
    )
    return rollout, StepPairs(*(torch.stack(parts, dim=1) for parts in zip(*compared, strict=True)))


def foresee(
    policy: DiffusionPolicy, context: Conditions, number: int, latents: Float[Tensor, "b c h w"]
) -> tuple[Float[Tensor, "b c h w"], Pictures]:
    """(the network's output for latents before step `number`, the picture that it foresees); after the last, what they show."""
    steps = policy.sampler.timesteps.to(policy.device)
    if number == len(steps):
        return torch.zeros_like(latents), policy.decode(latents)
    output, clean = predict_clean(policy, latents, steps[number].expand(len(latents)), context)
    return output, policy.decode(clean)


def foresee_and_judge(
    policy: DiffusionPolicy,
    prompts: list[str],
    context: Conditions,
    judge: StepReward,
    number: int,
    before: Pictures,
    latents: Float[Tensor, "b c h w"],
) -> tuple[Float[Tensor, "b c h w"], Pictures, Float[Tensor, " b"]]:
    """`foresee` for latents after step `number`, and the reward of the step to them."""
    output, after = foresee(policy, context, number + 1, latents)
    step = policy.sampler.timesteps[number].to(policy.device).expand(len(latents))
    return output, after, values_of(judge(before, after, noise_levels(policy, step), prompts), after)


def draw_candidates(
    mean: Float[Tensor, "b c h w"],
    sigma: Float[Tensor, " b"],
    try_out: Callable[[Tensor], tuple[Tensor, Pictures, Tensor]],
    count: int,
    generator: torch.Generator | PartOf,
) -> Candidates:
    """`count` draws of one Gaussian step, one after another, so that memory is that of one; which goes on is drawn evenly."""
    chosen = numbers(count, len(mean), generator).to(mean.device)
    drawn, scores, kept = list[Tensor](), list[Tensor](), list[Tensor]()
    for number in range(count):
        latents = mean + column(sigma) * gaussian(mean.shape, generator, mean.device)
        output, foreseen, score = try_out(latents)
        drawn.append(latents)
        scores.append(score)
        new, own = [latents, output, foreseen], (chosen == number).view(-1, 1, 1, 1)
        kept = [torch.where(own, *both) for both in zip(new, kept, strict=True)] if kept else new
    return Candidates(torch.stack(drawn, dim=1), torch.stack(scores, dim=1), *kept)


def numbers(below: int, count: int, generator: torch.Generator | PartOf) -> Int[Tensor, " count"]:
    """Numbers from 0 to, but not, `below`, one a row."""
    if isinstance(generator, torch.Generator):
        return torch.randint(below, (count,), generator=generator)
    everything = torch.randint(below, (generator.count,), generator=generator.generator)
    return everything[generator.rows.start : generator.rows.stop]


def paired(found: Candidates, margin: float) -> StepPairs:
    """Best and worst of one step's candidates (no `s`)."""
    best, worst, decided = best_and_worst(found.scores, margin)
    rows = torch.arange(len(best), device=best.device)
    return StepPairs(found.drawn[rows, best], found.drawn[rows, worst], decided, found.scores)


def best_and_worst(
    scores: Float[Tensor, "b k"], margin: float = 0.0
) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"], Bool[Tensor, " b"]]:
    """(place of the best, of the worst, whether they differ by more than `margin`) of the candidates that have a score."""
    missing = scores.isnan()
    high, best = scores.masked_fill(missing, -torch.inf).max(dim=1)
    low, worst = scores.masked_fill(missing, torch.inf).min(dim=1)
    return best, worst, high - low > margin
