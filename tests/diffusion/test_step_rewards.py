"""Windows of a path sum to what it gained; labels and learned rewards give every step a value."""

import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch

from diffusion.policy import DiffusionPolicy
from diffusion.step_rewards import (
    LearnedStepReward,
    after_step,
    as_items,
    image_at,
    label_values,
    step_features,
    window_rewards,
)
from mmrlhf.errors import UserError
from mmrlhf.rewards.rules.simple import Brightness
from mmrlhf.rewards.segments.fit import fit_segments
from mmrlhf.rewards.segments.text import span_labels
from mmrlhf.seeding import seeded
from mmrlhf.segments import SegmentedItem, SegmentLabel, SegmentScore, read_segments, with_rest, write_segments
from mmrlhf.types import Rollout
from tests.diffusion.test_preference_data import faithful
from tests.small_flow_models import small_pipeline
from tests.small_models import small_stable_diffusion

PROMPTS = ["a cat", "red"]
NAN = float("nan")


def load(model: Path, num_steps: int = 4) -> DiffusionPolicy:
    return DiffusionPolicy.load(str(model), num_steps=num_steps, guidance_scale=1.0, size=64, device="cpu")


def drawn(policy: DiffusionPolicy, prompts: list[str] = PROMPTS, seed: int = 0) -> Rollout:
    return policy.sample(prompts, seeded(seed))


def test_windows_sum_to_what_the_path_gained(model: Path) -> None:
    policy = load(model)
    rollout = drawn(policy)
    parts = window_rewards(policy, rollout, [(0, 1), (1, 3), (3, 4)], Brightness())
    whole = window_rewards(policy, rollout, [(0, 4)], Brightness())
    torch.testing.assert_close(parts.sum(dim=1), whole[:, 0], atol=1e-6, rtol=0)
    first = Brightness()(image_at(policy, rollout, 0), PROMPTS)
    torch.testing.assert_close(whole[:, 0], Brightness()(rollout.images, PROMPTS) - first)
    assert parts.abs().min() > 0


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_what_is_foreseen_is_the_textbook_x_0(tmp_path: Path, kind: str) -> None:
    if kind == "flow":
        small_pipeline("StableDiffusion3Pipeline", tmp_path)
    else:
        small_stable_diffusion(tmp_path, prediction_type=kind)
    policy = load(tmp_path, num_steps=3)
    rollout = drawn(policy)
    steps = rollout.latents.shape[1]
    assert steps == (2 if kind == "flow" else 3) and image_at(policy, rollout, steps) is rollout.images
    latents, scheduler = rollout.latents[:, 1], policy.pipeline.scheduler
    scheduler.set_timesteps(3)
    time = scheduler.timesteps[1]
    with torch.no_grad():
        output = policy.predict(latents, time.expand(2), policy.context(PROMPTS))
    if kind == "flow":
        clean = latents - scheduler.sigmas[1] * output
    else:
        alpha = scheduler.alphas_cumprod[time]
        clean = alpha.sqrt() * latents - (1 - alpha).sqrt() * output
        if kind == "epsilon":
            clean = (latents - (1 - alpha).sqrt() * output) / alpha.sqrt()
    torch.testing.assert_close(image_at(policy, rollout, 1), policy.decode(clean), atol=1e-5, rtol=0)


def test_an_abstention_spares_the_other_windows(model: Path) -> None:
    policy, calls = load(model), [0]
    rollout = drawn(policy)

    def at_the_second(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        calls[0] += 1
        return images.mean(dim=(1, 2, 3)) * torch.tensor([1.0, NAN if calls[0] == 2 else 1.0])

    rewards = window_rewards(policy, rollout, [(0, 1), (1, 3), (3, 4)], at_the_second)
    assert rewards.isnan().tolist() == [[False, False, False], [True, True, False]]
    items = as_items(rewards, [(0, 1), (1, 3), (3, 4)], 4, ["p", "q"], PROMPTS)
    assert label_values(items, 4)[1].isnan().tolist() == [True, True, True, False]


def test_rewards_of_windows_are_labels_and_labels_values_of_steps(tmp_path: Path) -> None:
    windows = [(0, 1), (1, 3), (3, 6)]
    rewards = torch.tensor([[0.5, -1.0, 3.0], [0.0, 2.0, 1.5]])
    items = as_items(rewards, windows, 6, ["p", "q"], PROMPTS)
    write_segments(items, tmp_path / "segments.jsonl")
    assert read_segments(tmp_path / "segments.jsonl") == items
    assert label_values(items, 6).tolist() == [[0.5, -1.0, -1.0, 3.0, 3.0, 3.0], [0.0, 2.0, 2.0, 1.5, 1.5, 1.5]]
    shares = label_values(items, 6, pooling="sum")
    assert shares[0].tolist() == [0.5, -0.5, -0.5, 1.0, 1.0, 1.0]
    torch.testing.assert_close(shares.sum(dim=1), rewards.sum(dim=1))


def test_tags_of_people_as_values_of_steps() -> None:
    given = (
        SegmentLabel("p", 0, 2, "correct"),
        SegmentLabel("p", 3, 4, "misleading"),
        SegmentLabel("p", 4, 5, "irrelevant"),
    )
    item = SegmentedItem("p", given, steps=6)
    (values,) = label_values([item], 6).tolist()
    assert values[:2] == [1, 1] and math.isnan(values[2]) and values[3:5] == [-1, 0] and math.isnan(values[5])
    assert label_values([item], 6, rest=0.0, irrelevant=-0.5).tolist() == [[1, 1, 0, -1, -0.5, 0]]
    assert label_values([with_rest(item)], 6).tolist() == [[1, 1, 1, -1, 0, 1]]
    overlapping = SegmentedItem("p", (SegmentScore("p", 0, 2, 1.0), SegmentScore("p", 1, 3, 3.0)), steps=3)
    assert label_values([overlapping], 3).tolist() == [[1, 2, 3]]
    assert label_values([], 3).shape == (0, 3)


def colours(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """Stands for the image tower of a CLIP."""
    return 10 * images.mean(dim=(2, 3))


def test_a_reward_of_steps_is_learnt_from_labels_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """People call a window correct where the picture that is foreseen gets brighter; the reward finds that in other paths."""
    faithful(monkeypatch)
    small_stable_diffusion(tmp_path, prediction_type="v_prediction")
    policy = load(tmp_path, num_steps=3)
    rollout, others = drawn(policy, ["a cat"] * 48), drawn(policy, ["a dog"] * 16, seed=1)
    windows = [(0, 1), (1, 3)]
    items = [
        labelled(str(row), windows, gains)
        for row, gains in enumerate(window_rewards(policy, rollout, windows, Brightness()))
    ]
    features = step_features(policy, rollout, colours)
    levels = (1 - policy.pipeline.scheduler.alphas_cumprod[policy.sampler.timesteps]).sqrt()
    assert features.shape == (48, 3, 7)
    torch.testing.assert_close(features[0, :, -1], levels)
    mask = torch.ones(48, 3, dtype=torch.bool)
    reward = fit_segments(features, mask, span_labels(items), seed=0, pooling="sum", progress=False)
    learned = LearnedStepReward(reward, colours)
    values = learned.of_path(policy, others)
    gained = window_rewards(policy, others, [(step, step + 1) for step in range(3)], Brightness())
    assert torch.corrcoef(torch.stack([values.flatten(), gained.flatten()]))[0, 1] > 0.9
    assert ((values > 0) == (gained > 0))[:, 0].float().mean() > 0.9  # later steps change little
    before, after = image_at(policy, others, 1), image_at(policy, others, 2)
    again: LearnedStepReward = pickle.loads(pickle.dumps(learned))
    torch.testing.assert_close(again(before, after, levels[1].expand(16), others.prompts), values[:, 1])


def labelled(name: str, windows: Sequence[tuple[int, int]], gains: torch.Tensor) -> SegmentedItem:
    """A path of three steps as one sees it who wants bright pictures."""
    tags: list[Literal["correct", "misleading"]] = ["correct" if gain > 0 else "misleading" for gain in gains.tolist()]
    return SegmentedItem(
        name, tuple(SegmentLabel(name, *window, tag) for window, tag in zip(windows, tags, strict=True)), steps=3
    )


def test_an_image_reward_judges_what_is_foreseen_after_a_step() -> None:
    before, after = torch.zeros(2, 3, 8, 8), torch.rand(2, 3, 8, 8, generator=seeded(0))
    judge = pickle.loads(pickle.dumps(after_step(Brightness())))
    assert judge(before, after, torch.zeros(2), PROMPTS).equal(Brightness()(after, PROMPTS))


def test_bad_input(model: Path) -> None:
    policy = load(model, num_steps=2)
    rollout = drawn(policy)
    for window in ((1, 1), (0, 3), (-1, 2)):
        with pytest.raises(
            UserError, match=r"windows got \(.*\), allowed are \(start, end\) with 0 <= start < end <= 2"
        ):
            window_rewards(policy, rollout, [(0, 1), window], Brightness())
    with pytest.raises(UserError, match="windows got none"):
        as_items(torch.zeros(2, 0), [], 2, ["p", "q"], PROMPTS)
    with pytest.raises(UserError, match=r"the reward gave shape \(1,\) for 2 images, allowed is one number an image"):
        window_rewards(policy, rollout, [(0, 2)], lambda images, prompts: torch.zeros(1))
    with pytest.raises(UserError, match="item 'p' is of 3 steps, allowed are labels on paths of 2 denoising steps"):
        label_values([SegmentedItem("p", (), steps=3)], 2)
    with pytest.raises(UserError, match="item 'p' is an answer, allowed are labels on paths"):
        label_values([SegmentedItem("p", (), answer="a red cat")], 2)
