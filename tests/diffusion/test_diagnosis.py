import re
from typing import Any

import pytest
import torch

from diffusion.diagnosis import diagnose, update_size


def line(**change: Any) -> dict[str, Any]:
    return {"reward_mean": 0.5, "reward_std": 0.1, "clip_fraction": 0.3, "updates": 4, **change}


def group_line(**change: Any) -> dict[str, Any]:
    """What a method that compares within groups measures besides."""
    figures = {"group_std_mean": 0.05, "zero_spread_groups": 0.25, "rated_per_prompt": 8.0}
    return line(**figures, advantage_clipped=0.01, update_size=1e-3) | change


def test_a_healthy_run_has_no_problem() -> None:
    assert diagnose([line()] * 5, 1e-4) == {}
    assert diagnose([group_line()] * 5, 1e-4) == {}


@pytest.mark.parametrize(("mean", "spread"), [(0.5, 0.0), (0.5, 1e-9), (-2000.0, 1e-4)])
def test_rewards_without_spread(mean: float, spread: float) -> None:
    found = diagnose([line(), line(reward_mean=mean, reward_std=spread)], 1e-4)
    assert list(found) == ["flat reward"] and "check the reward on two different images" in found["flat reward"]


def test_ratios_that_never_leave_the_clip_range() -> None:
    still = line(clip_fraction=0.0)
    assert "raise --learning-rate" in diagnose([line(), still, still, still], 1e-4)["no step"]
    assert diagnose([still, still], 1e-4) == {}  # too early to say
    assert diagnose([still, line(), still], 1e-4) == {}
    assert diagnose([line(clip_fraction=0.0, updates=1)] * 3, 1e-4) == {}  # with one update, ratios are always 1


def test_ratios_that_are_always_outside() -> None:
    wild = line(clip_fraction=0.95)
    assert "lower --learning-rate" in diagnose([wild] * 3, 1e-4)["always clipped"]
    assert diagnose([wild, wild], 1e-4) == {}


@pytest.mark.parametrize(
    ("change", "name", "advice"),
    [
        ({"zero_spread_groups": 0.6}, "flat groups", "in 60% of the groups .*raise --samples-per-prompt or --eta"),
        ({"group_std_mean": 0.0009}, "flat groups", "differ by prompt .0.1. but hardly within .*raise --eta"),
        ({"advantage_clipped": 0.3}, "clipped advantages", "30% of the advantages .*raise --advantage-clip"),
        ({"update_size": 1e-6}, "small updates", "by 1e-06 of their size.*raise --learning-rate"),
        ({"update_size": 0.7}, "large updates", "by 0.7 of their size.*lower --learning-rate"),
    ],
)
def test_what_must_last_to_be_a_problem(change: dict[str, Any], name: str, advice: str) -> None:
    bad = group_line(**change)
    found = diagnose([group_line(), bad, bad, bad], 1e-4)
    assert list(found) == [name]
    assert re.search(advice, found[name])
    assert diagnose([bad, bad], 1e-4) == {}  # too early to say
    assert diagnose([bad, group_line(), bad], 1e-4) == {}
    assert diagnose([line(), bad, bad], 1e-4) == {}  # an epoch that did not measure it


def test_a_flat_reward_is_not_also_told_by_group() -> None:
    flat = group_line(reward_std=0.0, group_std_mean=0.0, zero_spread_groups=1.0)
    assert list(diagnose([flat] * 3, 1e-4)) == ["flat reward"]


def test_a_flat_reward_is_no_matter_of_the_learning_rate() -> None:
    flat = group_line(reward_std=0.0, clip_fraction=0.0, update_size=0.0)
    assert list(diagnose([flat] * 3, 1e-4)) == ["flat reward"]
    assert list(diagnose([flat, flat, flat | {"reward_std": 0.1}], 1e-4)) == ["no step", "small updates"]


def test_too_few_samples_a_prompt_show_at_once() -> None:
    found = diagnose([group_line(rated_per_prompt=2.0)], 1e-4)
    assert list(found) == ["few samples"] and found["few samples"].endswith("raise --samples-per-prompt to 8 or more")
    assert "only 2 that have a reward" in found["few samples"]
    found = diagnose([group_line(rated_per_prompt=3.5, abstained=9)], 1e-4)
    assert found["few samples"].endswith("and see why the reward abstains")
    assert diagnose([group_line(rated_per_prompt=4.0)], 1e-4) == {}


def test_the_size_of_an_update_is_how_far_the_weights_went() -> None:
    weights = [torch.nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(i))) for i in range(2)]
    optimizer = torch.optim.AdamW(weights, lr=0.01, weight_decay=0.0)
    assert update_size(optimizer) == 0.0
    for step in range(3):
        before = [weight.detach().clone() for weight in weights]
        torch.stack([(weight * (step + 1)).square().sum() for weight in weights]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = torch.cat(
            [(weight.detach() - old).flatten() for weight, old in zip(weights, before, strict=True)]
        ).norm()
        size = torch.cat([weight.detach().flatten() for weight in weights]).norm()
        assert update_size(optimizer) == pytest.approx(float(moved / size), rel=1e-4)
