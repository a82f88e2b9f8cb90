"""The DDIM step against diffusers' own, and its density against torch's Gaussian."""

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler

from diffusion.ddim import DDIM, gaussian_kl, gaussian_log_prob
from mmrlhf.errors import UserError

STABLE_DIFFUSION = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1, "clip_sample": False,
    "set_alpha_to_one": False,
}  # fmt: skip


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "change",
    [{}, {"set_alpha_to_one": True}, {"timestep_spacing": "trailing"}, {"clip_sample": True, "clip_sample_range": 1.5}],
    ids=str,
)
@pytest.mark.parametrize("num_steps", [7, 50])
def test_mean_and_spread_are_those_of_diffusers(
    prediction_type: str, eta: float, change: dict[str, Any], num_steps: int
) -> None:
    scheduler = DDIMScheduler(**{**STABLE_DIFFUSION, **change, "prediction_type": prediction_type})
    scheduler.set_timesteps(num_steps)
    ddim = DDIM(scheduler.config, num_steps, eta)
    assert ddim.timesteps.tolist() == scheduler.timesteps.tolist()
    latents, output, drawn = (noise(seed, 2, 4, 8, 8) for seed in range(3))
    for timestep in scheduler.timesteps[:: max(1, num_steps // 7)].tolist() + [int(scheduler.timesteps[-1])]:
        at = ddim.coefficients(torch.tensor([timestep] * 2))
        mean = ddim.mean(output, latents, at)
        theirs = scheduler.step(output, timestep, latents, eta=eta, variance_noise=torch.zeros(2, 4, 8, 8)).prev_sample
        torch.testing.assert_close(mean, theirs, atol=1e-5, rtol=1e-4)
        theirs = scheduler.step(output, timestep, latents, eta=eta, variance_noise=drawn).prev_sample
        ours = mean + at.sigma[:, None, None, None] * drawn
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_each_sample_may_be_at_a_step_of_its_own() -> None:
    ddim = DDIM(DDIMScheduler(**STABLE_DIFFUSION).config, 10, 1.0)
    latents, output = noise(0, 10, 4, 8, 8), noise(1, 10, 4, 8, 8)
    together = ddim.mean(output, latents, ddim.coefficients(ddim.timesteps))
    for row, timestep in enumerate(ddim.timesteps):
        alone = ddim.mean(output[row : row + 1], latents[row : row + 1], ddim.coefficients(timestep[None]))
        torch.testing.assert_close(together[row], alone[0])


def test_full_noise_is_the_posterior_of_ddpm() -> None:
    """η = 1 gives the mean and variance of q(x_{t-1} | x_t, x_0) of Ho et al. 2020, eq. 7, here over a stride of 100."""
    ddim = DDIM(DDIMScheduler(**STABLE_DIFFUSION).config, 10, 1.0)
    latents, output = noise(0, 1, 4, 8, 8), noise(1, 1, 4, 8, 8)
    at = ddim.coefficients(ddim.timesteps[3:4])
    alpha, after = at.alpha.item(), at.next_alpha.item()
    beta = 1 - alpha / after
    clean = (latents - math.sqrt(1 - alpha) * output) / math.sqrt(alpha)
    scale_clean = math.sqrt(after) * beta / (1 - alpha)
    scale_latents = math.sqrt(1 - beta) * (1 - after) / (1 - alpha)
    torch.testing.assert_close(ddim.mean(output, latents, at), scale_clean * clean + scale_latents * latents)
    assert at.sigma.item() ** 2 == pytest.approx(beta * (1 - after) / (1 - alpha))


def test_which_steps_have_noise() -> None:
    config = DDIMScheduler(**STABLE_DIFFUSION).config
    assert DDIM(config, 10, 1.0).gaussian_steps() == 10
    assert DDIM(config, 10, 0.0).gaussian_steps() == 0
    to_one = DDIMScheduler(**{**STABLE_DIFFUSION, "set_alpha_to_one": True}).config
    assert DDIM(to_one, 10, 1.0).gaussian_steps() == 9  # the last step ends at ᾱ = 1, where σ = 0


def test_log_prob_is_the_gaussian_density_averaged() -> None:
    drawn, mean, sigma = noise(0, 3, 4, 8, 8), noise(1, 3, 4, 8, 8), torch.tensor([0.1, 1.0, 3.0])
    density = torch.distributions.Normal(mean, sigma[:, None, None, None].expand_as(mean)).log_prob(drawn)
    torch.testing.assert_close(gaussian_log_prob(drawn, mean, sigma), density.mean(dim=(1, 2, 3)))


def test_log_prob_by_hand() -> None:
    one = torch.ones(1, 1, 1, 1)
    assert gaussian_log_prob(3 * one, one, torch.tensor([2.0])).item() == pytest.approx(
        -0.5 - math.log(2) - 0.5 * math.log(2 * math.pi)
    )


def test_log_prob_stays_finite_without_spread() -> None:
    one = torch.ones(1, 4, 8, 8)
    assert gaussian_log_prob(one, one, torch.zeros(1)).item() == pytest.approx(-math.log(1e-6) - 0.9189385, rel=1e-5)


def test_kl_is_that_of_two_gaussians_summed() -> None:
    mean, other, sigma = noise(0, 2, 4, 8, 8), noise(1, 2, 4, 8, 8), torch.tensor([0.5, 2.0])
    wide = sigma[:, None, None, None].expand_as(mean)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, wide), torch.distributions.Normal(other, wide)
    )
    torch.testing.assert_close(gaussian_kl(mean, other, sigma), exact.sum(dim=(1, 2, 3)))


def test_other_schedulers_are_read_as_ddim_without_clipping() -> None:
    shared = {key: value for key, value in STABLE_DIFFUSION.items() if key not in ("clip_sample",)}
    pndm = DDIM(PNDMScheduler(**shared, skip_prk_steps=True).config, 10, 1.0)
    ours = DDIM(DDIMScheduler(**STABLE_DIFFUSION).config, 10, 1.0)
    assert pndm.clip is None
    assert pndm.timesteps.tolist() == ours.timesteps.tolist()
    assert pndm.coefficients(pndm.timesteps).sigma.equal(ours.coefficients(ours.timesteps).sigma)


@pytest.mark.parametrize(
    ("change", "most"), [({}, 999), ({"steps_offset": 0}, 1000), ({"timestep_spacing": "trailing"}, 1000)]
)
def test_all_training_steps_at_most(change: dict[str, Any], most: int) -> None:
    config = DDIMScheduler(**{**STABLE_DIFFUSION, **change}).config
    ddim = DDIM(config, most, 1.0)
    assert ddim.coefficients(ddim.timesteps).sigma.isfinite().all()
    with pytest.raises(UserError, match=f"num_steps got {most + 1}, allowed is 1 to {most} "):
        DDIM(config, most + 1, 1.0)


def test_refuses_what_it_cannot_compute() -> None:
    config = DDIMScheduler(**STABLE_DIFFUSION).config
    with pytest.raises(UserError, match="num_steps got 0, allowed is 1 to 999 for this model of 1000 training steps"):
        DDIM(config, 0, 1.0)
    with pytest.raises(UserError, match="timestep_spacing 'odd', allowed are leading, trailing, linspace"):
        DDIM(DDIMScheduler(**STABLE_DIFFUSION, timestep_spacing="odd").config, 10, 1.0)
    with pytest.raises(UserError, match="predicts 'sample'.*allowed are epsilon, v_prediction"):
        DDIM(DDPMScheduler(prediction_type="sample").config, 10, 1.0)
