"""The step of a rectified flow as a Gaussian: the stochastic flow of Flow-GRPO (Liu et al. 2025, https://arxiv.org/abs/2505.05470)."""

from typing import Any, NamedTuple

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float, Int
from torch import Tensor

from diffusion.sampling import column
from mmrlhf.errors import UserError


class FlowCoefficients(NamedTuple):
    """Per sample: the noise level σ (1 noise, 0 sample), how far the step goes (below 0), the diffusion s, the step's spread."""

    level: Float[Tensor, " b"]
    change: Float[Tensor, " b"]
    diffusion: Float[Tensor, " b"]
    sigma: Float[Tensor, " b"]


class FlowSDE:
    """σ from 1 to 0 in `num_steps` steps, as the pipeline's scheduler cuts it; `eta` is the paper's a, 0.7 there; 0 is the ODE.

    s = a√(σ/(1−σ)), where at σ = 1 the next σ stands in below the line, and the step's spread is s√(−dt). The last step, which
    ends at σ = 0, is taken without noise, which would stay in the picture.
    """

    def __init__(
        self, config: Any, num_steps: int, eta: float, *, mu: float | None = None, sigmas: list[float] | None = None
    ) -> None:
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        if num_steps < 1 or num_steps > scheduler.config.num_train_timesteps:
            raise UserError(f"num_steps got {num_steps}, allowed is 1 to {scheduler.config.num_train_timesteps}")
        scheduler.set_timesteps(None if sigmas else num_steps, sigmas=sigmas, mu=mu)
        self.eta = eta
        self.timesteps: Int[Tensor, " t"] = torch.arange(num_steps)
        self.levels: Float[Tensor, " t_plus_1"] = scheduler.sigmas.double()
        self.training_steps = int(scheduler.config.num_train_timesteps)

    def gaussian_steps(self) -> int:
        """All but the last, or none."""
        return int((self.coefficients(self.timesteps).sigma > 0).sum())

    def times(self, timesteps: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """σ times the number of training steps."""
        return (self.levels[timesteps.cpu()] * self.training_steps).float().to(timesteps.device)

    def coefficients(self, timesteps: Int[Tensor, " b"], *, noisy: bool = True) -> FlowCoefficients:
        """Of these steps, as float32 on their device."""
        now = timesteps.cpu()
        level, following = self.levels[now], self.levels[now + 1]
        below = 1 - torch.where(level >= 1, self.levels[1], level)
        noisy_here = (following > 0) & noisy
        diffusion = torch.where(noisy_here, self.eta * (level / below).sqrt(), torch.zeros_like(level))
        sigma = diffusion * (level - following).sqrt()
        values = (level, following - level, diffusion, sigma)
        return FlowCoefficients(*(value.float().to(timesteps.device) for value in values))

    def mean(
        self, output: Float[Tensor, "b c h w"], latents: Float[Tensor, "b c h w"], at: FlowCoefficients
    ) -> Float[Tensor, "b c h w"]:
        """x(1 + s²/(2σ)·dt) + v(1 + s²(1−σ)/(2σ))·dt for the velocity v = `output` (eq. 9)."""
        level, change, squared = column(at.level), column(at.change), column(at.diffusion).square()
        scaled = latents.float() * (1 + squared / (2 * level) * change)
        return scaled + output.float() * (1 + squared * (1 - level) / (2 * level)) * change
