"""Rewards of parts of a denoising path: of windows of steps by any image reward, by labels on spans, or learnt from such labels.

At each step the network's answer amounts to a clean sample, x̂_0 (see `ForwardProcess.clean`); decoded, it can be scored as
a picture is, or looked at by people.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.families import Conditions
from diffusion.policy import DiffusionPolicy
from diffusion.rollouts import one_each
from mmrlhf.errors import UserError
from mmrlhf.rewards.segments.head import Pooling
from mmrlhf.rewards.segments.reward import SegmentReward
from mmrlhf.segments import SegmentedItem, SegmentScore, tags_to_values
from mmrlhf.types import Images, Rollout

ImageFunction = Callable[[Images, Sequence[str]], Tensor]
"""(images "b 3 h w", prompts) to "b" of a reward, or to "b f" of an encoder."""
StepReward = Callable[[Images, Images, Float[Tensor, " b"], Sequence[str]], Tensor]
"""Of single steps: (x̂_0 before, x̂_0 after, how much noise was in the latents before, prompts) to a reward each."""
Windows = Sequence[tuple[int, int]]


def predict_clean(
    policy: DiffusionPolicy, latents: Float[Tensor, "b c h w"], timesteps: Tensor, context: Conditions
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """(the network's output for these latents at these steps "b", the clean latents x̂_0 that it amounts to)."""
    times = policy.sampler.times(timesteps)
    output = policy.predict(latents, times, context)
    return output, policy.forward.clean(output, latents, times.float())


def noise_levels(policy: DiffusionPolicy, timesteps: Tensor) -> Float[Tensor, " b"]:
    """How much noise is in latents before these steps "b", from 1 to 0: √(1−ᾱ), or a flow's σ."""
    times = policy.sampler.times(timesteps).float()
    nothing = torch.zeros(len(times), 1, 1, 1, device=times.device)
    return policy.forward.noised(nothing, nothing + 1, times).flatten()


@torch.no_grad()
def image_at(policy: DiffusionPolicy, rollout: Rollout, step: int) -> Images:
    """What the present policy foresees before a step of the rollout: x̂_0 decoded; after the last step the images themselves."""
    if step == rollout.latents.shape[1]:
        return rollout.images
    context = policy.context(rollout.prompts)
    return policy.decode(predict_clean(policy, rollout.latents[:, step], rollout.timesteps[:, step], context)[1])


def values_of(given: Tensor, images: Images) -> Float[Tensor, " b"]:
    """What a reward gave for some images, on their device. UserError where that is not one number an image."""
    return one_each(given, len(images)).detach().float().to(images.device)


@torch.no_grad()
def window_rewards(
    policy: DiffusionPolicy, rollout: Rollout, windows: Windows, reward: ImageFunction
) -> Float[Tensor, "b w"]:
    """The reward of each window of steps [start, end): that of what is foreseen at its end, less that at its start.

    Windows that follow each other sum to that of the one from the first start to the last end; those of the whole path to the
    image's reward less that of the first x̂_0. NaN where the reward abstains. Costs a pass through network and decoder for
    every start and end but the path's. UserError for a window outside the path.
    """
    steps = rollout.latents.shape[1]
    check_windows(windows, steps)
    ends = sorted({end for window in windows for end in window})
    values = dict[int, Tensor]()
    for end in ends:
        images = image_at(policy, rollout, end)
        values[end] = values_of(reward(images, rollout.prompts), images)
    return torch.stack([values[end] - values[start] for start, end in windows], dim=1)


def check_windows(windows: Windows, steps: int) -> None:
    """UserError where there is no window, or one that is empty or outside `steps` steps."""
    wrong = [window for window in windows if not 0 <= window[0] < window[1] <= steps]
    if wrong or not windows:
        got = f"{wrong[0]}" if wrong else "none"
        raise UserError(
            f"windows got {got}, allowed are (start, end) with 0 <= start < end <= {steps}, the path's steps"
        )


def as_items(
    rewards: Float[Tensor, "b w"], windows: Windows, steps: int, names: Sequence[str], prompts: Sequence[str]
) -> list[SegmentedItem]:
    """Rewards of windows as scores of spans of steps, as people give them; a window whose reward is NaN was not judged."""
    check_windows(windows, steps)
    items = []
    for name, prompt, row in zip(names, prompts, rewards.tolist(), strict=True):
        given = [(window, value) for window, value in zip(windows, row, strict=True) if not math.isnan(value)]
        segments = tuple(SegmentScore(name, start, end, value) for (start, end), value in given)
        items.append(SegmentedItem(name, segments, prompt=prompt, steps=steps))
    return items


def label_values(
    items: Sequence[SegmentedItem],
    steps: int,
    *,
    pooling: Pooling = "mean",
    irrelevant: float = 0.0,
    rest: float = math.nan,
) -> Float[Tensor, "b t"]:
    """A value for each of `steps` denoising steps of each path, from the scores and tags of its spans (see `tags_to_values`).

    With `pooling` mean a step is worth what its span is, with sum its share of that, so that the steps of a span add up to
    it: for `window_rewards`, and returns. Where spans overlap it is their mean, where none is `rest`; NaN means not judged.
    Of a path that ends with a step without noise, as a flow's does, the last value belongs to no log-prob.
    UserError for an item of something else than `steps` steps.
    """
    values = torch.full((len(items), steps), rest)
    for row, item in enumerate(items):
        if item.steps != steps:
            got = f"is of {item.steps} steps" if item.steps is not None else "is an answer"
            raise UserError(f"item {item.item!r:.60} {got}, allowed are labels on paths of {steps} denoising steps")
        covering = torch.zeros(2, steps, dtype=torch.float64)  # sum of the values, and how many
        for segment, value in zip(item.segments, tags_to_values(item.segments, irrelevant), strict=True):
            share = value / (segment.end - segment.start) if pooling == "sum" else value
            covering[:, segment.start : segment.end] += torch.tensor([[share], [1.0]], dtype=torch.float64)
        judged = covering[1] > 0
        values[row, judged] = (covering[0, judged] / covering[1, judged]).float()
    return values


@torch.no_grad()
def step_features(policy: DiffusionPolicy, rollout: Rollout, embed: ImageFunction) -> Float[Tensor, "b t f"]:
    """What a learned reward of steps sees of each: `embed` of what is foreseen after it, its change, and the noise.

    `embed(images, prompts)` gives "b f", as the image tower of a CLIP does. With labels on steps (`span_labels` of items in
    the order of the rollout) `mmrlhf.rewards.segments.fit.fit_segments` learns from these features.
    """
    count = rollout.latents.shape[1]
    seen = [embed(image_at(policy, rollout, step), rollout.prompts) for step in range(count + 1)]
    noise = [noise_levels(policy, rollout.timesteps[:, step]) for step in range(count)]
    return torch.stack([joined(seen[k], seen[k + 1], noise[k]) for k in range(count)], dim=1)


def joined(
    before: Float[Tensor, "b f"], after: Float[Tensor, "b f"], noise: Float[Tensor, " b"]
) -> Float[Tensor, "b two_f_plus_1"]:
    """The features of a step from the embeddings of x̂_0 before and after it, and the noise before it."""
    return torch.cat([after, after - before, noise.to(after).unsqueeze(1)], dim=1)


def after_step(reward: ImageFunction) -> StepReward:
    """A step is worth what the image reward says of x̂_0 after it; so are compared steps that start from the same latents."""
    return partial(_after_step, reward)


def _after_step(
    reward: ImageFunction, before: Images, after: Images, noise: Float[Tensor, " b"], prompts: Sequence[str]
) -> Tensor:
    return reward(after, prompts)


class LearnedStepReward:
    """A step's reward learnt from labels on spans of steps: a `SegmentReward` that saw `step_features` with this `embed`."""

    def __init__(self, learned: SegmentReward, embed: ImageFunction) -> None:
        self.learned, self.embed = learned, embed

    @torch.no_grad()
    def __call__(
        self, before: Images, after: Images, noise: Float[Tensor, " b"], prompts: Sequence[str]
    ) -> Float[Tensor, " b"]:
        features = joined(self.embed(before, prompts), self.embed(after, prompts), noise)
        return self.learned(features.unsqueeze(1)).squeeze(1)

    def of_path(self, policy: DiffusionPolicy, rollout: Rollout) -> Float[Tensor, "b t"]:
        """That of every step of some paths, as the present policy foresees them."""
        return self.learned(step_features(policy, rollout, self.embed))
