"""The value network foretells rewards from denoising states, for every family, and goes on from its state."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.policy import DiffusionPolicy
from diffusion.value import (
    Standardised,
    ValueBaseline,
    ValueNetwork,
    prompt_features,
    state_features,
    steps_of,
)
from mmrlhf.rl import explained_variance, value_loss
from mmrlhf.seeding import seeded
from mmrlhf.types import Rollout
from tests.small_flow_models import small_pipeline

SAMPLES = 48


@pytest.fixture(scope="module")
def policy(model: Path) -> DiffusionPolicy:
    return DiffusionPolicy.load(str(model), num_steps=5, guidance_scale=1.0, device="cpu")


def baseline(**change: Any) -> ValueBaseline:
    return ValueBaseline(**{"seed": 0, "learning_rate": 3e-3, "clip": 0.2, "epochs": 10, **change})


def walk(policy: DiffusionPolicy, number: int, count: int = SAMPLES) -> Rollout:
    """Latents that walk at random, as if drawn: what is read of a rollout, without a denoising step."""
    steps = policy.sampler.gaussian_steps()
    path = torch.randn(count, steps + 1, *policy.latent_shape, generator=seeded(number))
    path[:, 0] *= 3
    path = path.cumsum(dim=1)
    prompts = tuple(["a cat", "a dog", "red"][row % 3] for row in range(count))
    return Rollout(
        prompts=prompts,
        latents=path[:, :-1],
        next_latents=path[:, 1:],
        timesteps=policy.sampler.timesteps[:steps].expand(count, -1),
        log_probs=torch.zeros(count, steps),
        images=torch.zeros(count, 3, 8, 8),
        clean=path[:, -1],
    )


def brightness(rollout: Rollout) -> torch.Tensor:
    """A reward that the states foretell the better the later they are."""
    return 5 + 3 * rollout.clean.mean(dim=(1, 2, 3))


def judge(
    value: ValueBaseline, policy: DiffusionPolicy, rollout: Rollout, rewards: torch.Tensor, epoch: int = 0
) -> Any:
    return value.judge(policy, rollout, torch.arange(len(rewards)), rewards, 8, seeded(1, epoch))


def test_value_loss_in_closed_form() -> None:
    """Old value 0, return 1, clip 0.2: the clipped value's error counts where it is the larger."""
    values = torch.tensor([[0.1, 0.5, -0.5]], requires_grad=True)
    old, returns = torch.zeros(1, 3), torch.ones(1, 3)
    loss, figures = value_loss(values, old, returns, 0.2)
    assert loss.item() == pytest.approx(0.5 * (0.9**2 + 0.8**2 + 1.5**2) / 3)
    assert figures == {"value_loss": pytest.approx(loss.item())}
    (gradient,) = torch.autograd.grad(loss, values)
    assert gradient.tolist() == [pytest.approx([-0.9 / 3, 0.0, -1.5 / 3])]  # moved far enough, not yet, the wrong way


def test_value_loss_is_that_of_a_loop_and_without_a_limit_the_square() -> None:
    values, old, returns = (torch.randn(4, 3, generator=seeded(number)) for number in range(3))
    expected = 0.0
    flat = (numbers.flatten().tolist() for numbers in (values, old, returns))
    for value, before, wanted in zip(*flat, strict=True):
        near = min(max(value, before - 0.3), before + 0.3)
        expected += 0.5 * max((value - wanted) ** 2, (near - wanted) ** 2) / 12
    assert value_loss(values, old, returns, 0.3)[0].item() == pytest.approx(expected, rel=1e-5)
    square = 0.5 * (values - returns).square().mean()
    torch.testing.assert_close(value_loss(values, old, returns, math.inf)[0], square)


def test_explained_variance_in_closed_form() -> None:
    returns = torch.tensor([[0.0], [2.0], [4.0]])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(torch.ones(3, 1), returns) == 0  # a constant
    assert explained_variance(returns / 2, returns) == pytest.approx(0.75)
    assert explained_variance(-returns, returns) == pytest.approx(-3)
    assert explained_variance(returns, torch.ones(3, 1)) == 0  # nothing to explain


@pytest.mark.parametrize(
    ("decay", "expected"), [(1.0, [1.9, 1.7, 1.6]), (0.0, [0.2, 0.1, 1.6]), (0.5, [0.65, 0.9, 1.6])]
)
def test_advantages_of_the_steps_in_closed_form(decay: float, expected: list[float]) -> None:
    """V 0.1, 0.3, 0.4 and the reward 2 at the end: λ 1 is R − V, λ 0 the next V − V."""
    values = torch.tensor([[0.1, 0.3, 0.4]])
    advantages, returns = steps_of(torch.tensor([2.0]), values, decay)
    torch.testing.assert_close(advantages, torch.tensor([expected]))
    torch.testing.assert_close(returns, advantages + values)


def test_groups_of_features_weigh_alike_and_constant_ones_do_no_harm() -> None:
    few, many = torch.randn(50, 2, generator=seeded(0)), 7 + 100 * torch.randn(50, 30, generator=seeded(1))
    many[:, 3] = 4.0
    standardised = Standardised(32)
    standardised.fit([few, many])
    rows = standardised(torch.cat([few, many], dim=1))
    torch.testing.assert_close(rows.mean(dim=0), torch.zeros(32), atol=1e-5, rtol=0)
    assert rows[:, :2].square().sum(dim=1).mean() == pytest.approx(1, abs=1e-3)
    assert rows[:, 2:].square().sum(dim=1).mean() == pytest.approx(29 / 30, abs=1e-2) and not rows[:, 5].any()
    far = standardised(torch.full((1, 32), 1e9))
    assert far.isfinite().all() and far[0, 5] == pytest.approx(5 / 30**0.5)


def test_running_moments_are_those_of_all_rewards_and_values_keep_their_units() -> None:
    network = ValueNetwork(3, 2, seeded(0))
    torch.nn.init.normal_(network.head.weight, generator=seeded(1))
    states, prompts = torch.randn(4, 2, 3, generator=seeded(2)), torch.randn(4, 2, generator=seeded(3))
    rewards = 9 + 4 * torch.randn(30, generator=seeded(4))
    network.follow(rewards[:10])
    mean, spread = network.scale()
    before = mean + spread * network(states, prompts)
    network.follow(rewards[10:])
    mean, spread = network.scale()
    assert (mean, spread) == pytest.approx((float(rewards.mean()), float(rewards.std(correction=0))), rel=1e-5)
    torch.testing.assert_close(mean + spread * network(states, prompts), before)
    assert ValueNetwork(3, 2, seeded(0)).scale() == (0.0, 1.0)


def test_it_learns_a_reward_that_depends_on_the_state(policy: DiffusionPolicy) -> None:
    """Of states it has not seen it explains much more than at first, and what is left to advantages varies less."""
    value = baseline()
    explained = []
    for epoch in range(8):
        rollout = walk(policy, epoch)
        advantages, figures = judge(value, policy, rollout, brightness(rollout), epoch)
        explained.append(figures["value_explained"])
        assert advantages.shape == (SAMPLES, policy.sampler.gaussian_steps())
        assert float(advantages.mean()) == pytest.approx(0, abs=1e-5)
        assert float(advantages.std(correction=0)) == pytest.approx(1, abs=1e-3)
    assert explained[0] == 0 and min(explained[-2:]) > 0.4  # measured: about 0.7
    network, rollout = value.network, walk(policy, 99, 192)
    assert network is not None
    with torch.no_grad():
        values = network(torch.cat(state_features(policy, rollout), 2), torch.cat(prompt_features(policy, rollout), 1))
    rewards = network.standard(brightness(rollout))
    advantages, _ = steps_of(rewards, values, 1.0)
    assert advantages.var() < 0.5 * rewards.var()  # measured: 0.3
    assert advantages[:, -1].var() < 0.6 * advantages[:, 0].var()  # the last states say more than the first


def test_it_learns_which_prompt_is_worth_more(policy: DiffusionPolicy) -> None:
    value, rewards = baseline(), torch.arange(SAMPLES).remainder(3).float()
    explained = [judge(value, policy, walk(policy, epoch), rewards, epoch)[1]["value_explained"] for epoch in range(6)]
    assert explained[-1] > 0.7


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
def test_every_family_has_features_to_learn_from(name: str, tmp_path: Path) -> None:
    small_pipeline(name, tmp_path)
    policy = DiffusionPolicy.load(str(tmp_path), num_steps=4, guidance_scale=1.0, device="cpu", size=64)
    value, explained = baseline(), 0.0
    for epoch in range(5):
        rollout = walk(policy, epoch)
        explained = judge(value, policy, rollout, brightness(rollout), epoch)[1]["value_explained"]
    assert explained > 0.2  # measured: about 0.5
    assert {features.shape[:2] for features in state_features(policy, rollout)} == {rollout.timesteps.shape}
    assert len(prompt_features(policy, rollout)) == len(policy.embed(["a cat"]))


def test_a_process_without_a_sample_knows_the_widths(policy: DiffusionPolicy) -> None:
    empty, full = walk(policy, 0, 0), walk(policy, 0)
    for features in (state_features, prompt_features):
        assert [part.shape[-1] for part in features(policy, empty)] == [
            part.shape[-1] for part in features(policy, full)
        ]
        assert all(len(part) == 0 for part in features(policy, empty))


def test_an_abstention_counts_for_nothing(policy: DiffusionPolicy) -> None:
    rollout = walk(policy, 0)
    rewards = brightness(rollout)
    rewards[4] = math.nan
    value = baseline()
    advantages, figures = judge(value, policy, rollout, rewards)
    assert not advantages[4].any() and advantages[5].all() and math.isfinite(figures["value_loss"])
    other = baseline()
    moved = rollout._replace(latents=rollout.latents.clone())
    moved.latents[4] = moved.latents[4].flip(0)  # the same statistics of features, another sample
    judge(other, policy, moved, rewards)
    assert value.network is not None and other.network is not None
    torch.testing.assert_close(value.network.of_state.weight, other.network.of_state.weight)
    torch.testing.assert_close(value.network.scale(), other.network.scale())


def test_samples_are_known_by_their_place_in_the_epoch(policy: DiffusionPolicy) -> None:
    """`drawn` says where the rollout's samples belong, so the order in which they lie there does not matter."""
    rollout, order = walk(policy, 0), torch.randperm(SAMPLES, generator=seeded(5))
    rewards = brightness(rollout)
    values = [baseline(), baseline()]
    shuffled = Rollout(
        tuple(rollout.prompts[row] for row in order.tolist()), *(tensor[order] for tensor in rollout[1:])
    )
    for epoch in range(2):
        advantages, _ = values[0].judge(policy, rollout, torch.arange(SAMPLES), rewards, 8, seeded(epoch))
        same, _ = values[1].judge(policy, shuffled, order, rewards, 8, seeded(epoch))
        torch.testing.assert_close(advantages, same, atol=1e-3, rtol=0)


def test_its_state_goes_on_as_if_never_stopped(policy: DiffusionPolicy) -> None:
    whole, stopped = baseline(), baseline()
    stopped.load_state_dict(baseline().state_dict())  # before the first epoch there is nothing to keep
    rollouts = [walk(policy, epoch) for epoch in range(2)]
    for value in (whole, stopped):
        judge(value, policy, rollouts[0], brightness(rollouts[0]))
    resumed = baseline()
    resumed.load_state_dict(stopped.state_dict())
    first, second = (judge(value, policy, rollouts[1], brightness(rollouts[1]), 1) for value in (whole, resumed))
    assert first[0].equal(second[0]) and first[1] == second[1]
    states = [value.state_dict()["network"] for value in (whole, resumed)]
    assert all(tensor.equal(states[1][name]) for name, tensor in states[0].items())
