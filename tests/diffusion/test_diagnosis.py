from typing import Any

import pytest

from diffusion.diagnosis import diagnose


def line(**change: Any) -> dict[str, Any]:
    return {"reward_mean": 0.5, "reward_std": 0.1, "clip_fraction": 0.3, "updates": 4, **change}


def test_a_healthy_run_has_no_problem() -> None:
    assert diagnose([line()] * 5, 1e-4) == {}


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
