"""The stochastic flow against the ODE, the marginals that it must keep, and the formulas written out."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusion.flow_sde import FlowSDE
from mmrlhf.errors import UserError
from mmrlhf.seeding import seeded

CONFIG = FlowMatchEulerDiscreteScheduler(shift=3.0).config


def test_the_levels_are_those_of_the_scheduler() -> None:
    flow, scheduler = FlowSDE(CONFIG, 5, 0.7), FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    torch.testing.assert_close(flow.levels.float(), scheduler.sigmas)
    torch.testing.assert_close(flow.times(flow.timesteps), scheduler.timesteps)


def test_a_step_by_hand() -> None:
    flow = FlowSDE(CONFIG, 5, 0.7)
    for step in range(4):
        level, following = flow.levels[step].item(), flow.levels[step + 1].item()
        change = following - level
        below = 1 - (flow.levels[1].item() if level == 1 else level)
        spread = 0.7 * math.sqrt(level / below)
        at = flow.coefficients(torch.tensor([step]))
        assert float(at.sigma) == pytest.approx(spread * math.sqrt(-change), rel=1e-5)
        mean = flow.mean(torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0), at)
        expected = 3 * (1 + spread**2 / (2 * level) * change)
        expected += 2 * (1 + spread**2 * (1 - level) / (2 * level)) * change
        assert float(mean) == pytest.approx(expected, rel=1e-5)


def test_without_noise_it_is_the_euler_step_and_the_last_step_always_is() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    latents, velocity = torch.randn(2, 4, 2, 2, generator=seeded(0)), torch.randn(2, 4, 2, 2, generator=seeded(1))
    for eta, steps in ((0.0, range(5)), (0.7, [4])):
        flow = FlowSDE(CONFIG, 5, eta)
        for step in steps:
            scheduler._step_index = step
            theirs = scheduler.step(velocity, scheduler.timesteps[step], latents).prev_sample
            at = flow.coefficients(torch.full((2,), step))
            torch.testing.assert_close(flow.mean(velocity, latents, at), theirs)
            assert (at.sigma == 0).all()
    assert FlowSDE(CONFIG, 5, 0.7).gaussian_steps() == 4 and FlowSDE(CONFIG, 5, 0.0).gaussian_steps() == 0


def test_the_noise_keeps_the_marginals_of_the_flow() -> None:
    """Samples N(m, v): the exact velocity is known, and both the ODE and the SDE must end near the same mean and spread."""
    mean, variance = 1.5, 0.25
    results = []
    for eta in (0.0, 0.7):
        flow = FlowSDE(FlowMatchEulerDiscreteScheduler(shift=1.0).config, 400, eta)
        latents = torch.randn(20_000, 1, 1, 1, generator=seeded(0))
        generator = seeded(1)
        for step in range(400):
            level = float(flow.levels[step])
            spread = (1 - level) ** 2 * variance + level**2
            centred = latents - (1 - level) * mean
            clean = mean + (1 - level) * variance / spread * centred
            velocity = level / spread * centred - clean  # E[noise − sample | latents]
            at = flow.coefficients(torch.full((len(latents),), step))
            noise = torch.randn(latents.shape, generator=generator)
            latents = flow.mean(velocity, latents, at) + at.sigma.view(-1, 1, 1, 1) * noise
        results.append((float(latents.mean()), float(latents.std())))
    for found in results:
        assert found == pytest.approx((mean, math.sqrt(variance)), abs=0.02)


def test_too_many_steps() -> None:
    with pytest.raises(UserError, match="num_steps got 2000, allowed is 1 to 1000"):
        FlowSDE(CONFIG, 2000, 0.7)
