"""The DDIM step as a Gaussian: its mean, its spread, and the log-density of what was drawn (Song et al. 2020, eq. 12 and 16)."""

import math
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler
from jaxtyping import Float, Int
from torch import Tensor

from mmrlhf.errors import UserError

SMALLEST_SIGMA = 1e-6
PREDICTION_TYPES = ("epsilon", "v_prediction")
SPACINGS = ("leading", "trailing", "linspace")


class Coefficients(NamedTuple):
    """Per sample: ᾱ at its timestep, ᾱ at the next (less noisy) one, and the step's standard deviation σ."""

    alpha: Float[Tensor, " b"]
    next_alpha: Float[Tensor, " b"]
    sigma: Float[Tensor, " b"]


class DDIM:
    """A noise schedule cut into `num_steps` steps, noisiest first; `eta` 0 is deterministic, 1 the full DDPM noise.

    `config` is the config of any diffusers scheduler of the model (PNDM and the like are read as DDIM). Timesteps, and the
    ᾱ of the last step, are those of `diffusers.DDIMScheduler`. Arithmetic is in float32, coefficients in float64.
    """

    def __init__(self, config: Any, num_steps: int, eta: float) -> None:
        if config.get("prediction_type", "epsilon") not in PREDICTION_TYPES or config.get("thresholding", False):
            raise UserError(
                f"the model's scheduler predicts '{config.get('prediction_type')}' (thresholding "
                f"{config.get('thresholding', False)}), allowed are {', '.join(PREDICTION_TYPES)} without thresholding"
            )
        # the default of DDIMScheduler clips x̂_0 to [-1, 1], which is wrong for latents: clip only where the model says so
        scheduler = DDIMScheduler.from_config(config, clip_sample=config.get("clip_sample", False))
        limit, spacing = scheduler.config.num_train_timesteps, scheduler.config.timestep_spacing
        if spacing not in SPACINGS:
            raise UserError(
                f"the model's scheduler has timestep_spacing '{spacing}', allowed are {', '.join(SPACINGS)}"
            )
        # the timesteps of a scheduler with an offset start that much later, and must still be among the training steps
        most = limit - (scheduler.config.steps_offset if spacing == "leading" else 0)
        if not 1 <= num_steps <= most:
            raise UserError(
                f"num_steps got {num_steps}, allowed is 1 to {most} for this model of {limit} training steps"
            )
        scheduler.set_timesteps(num_steps)
        self.timesteps: Int[Tensor, " t"] = scheduler.timesteps
        self.eta = eta
        self.prediction_type: str = scheduler.config.prediction_type
        self.clip: float | None = scheduler.config.clip_sample_range if scheduler.config.clip_sample else None
        self.stride = limit // num_steps
        self.alphas = scheduler.alphas_cumprod.double()
        self.final_alpha = scheduler.final_alpha_cumprod.double()

    def times(self, timesteps: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """The network counts as the schedule does."""
        return timesteps

    def coefficients(self, timesteps: Int[Tensor, " b"], *, noisy: bool = True) -> Coefficients:
        """ᾱ_t, ᾱ_t' and σ_t = η√((1−ᾱ_t')/(1−ᾱ_t))·√(1−ᾱ_t/ᾱ_t') (eq. 16), as float32 on the device of `timesteps`."""
        now = timesteps.cpu()
        following = now - self.stride
        alpha = self.alphas[now]
        next_alpha = torch.where(following >= 0, self.alphas[following.clamp_min(0)], self.final_alpha)
        variance = (1 - next_alpha) / (1 - alpha) * (1 - alpha / next_alpha)
        sigma = (self.eta if noisy else 0.0) * variance.clamp_min(0).sqrt()
        return Coefficients(*(value.float().to(timesteps.device) for value in (alpha, next_alpha, sigma)))

    def gaussian_steps(self) -> int:
        """How many steps have noise and so a log-probability; those without can only be the last ones."""
        return int((self.coefficients(self.timesteps).sigma > 0).sum())

    def mean(
        self, output: Float[Tensor, "b c h w"], latents: Float[Tensor, "b c h w"], at: Coefficients
    ) -> Float[Tensor, "b c h w"]:
        """√ᾱ_t' x̂_0 + √(1−ᾱ_t'−σ_t²) ε̂ (eq. 12) from the model's `output` for `latents`."""
        alpha, next_alpha, sigma = (value[:, None, None, None] for value in at)
        output, latents = output.float(), latents.float()
        if self.prediction_type == "epsilon":
            noise = output
            clean = (latents - (1 - alpha).sqrt() * output) / alpha.sqrt()
        else:
            clean = alpha.sqrt() * latents - (1 - alpha).sqrt() * output
            noise = alpha.sqrt() * output + (1 - alpha).sqrt() * latents
        if self.clip is not None:
            clean = clean.clamp(-self.clip, self.clip)
        return next_alpha.sqrt() * clean + (1 - next_alpha - sigma**2).clamp_min(0).sqrt() * noise


def gaussian_log_prob(
    latents: Float[Tensor, "b c h w"], mean: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """log N(latents; mean, σ²I), averaged over the latent dimensions (nats a dimension), σ at least 1e-6.

    The average, not the paper's sum, is what ddpo-pytorch, TRL and flow_grpo use and what a clip range of 1e-4 belongs to.
    """
    width = sigma.clamp_min(SMALLEST_SIGMA)
    distance = ((latents - mean) / width[:, None, None, None]).square().mean(dim=(1, 2, 3))
    return -0.5 * distance - width.log() - 0.5 * math.log(2 * math.pi)


def gaussian_kl(
    mean: Float[Tensor, "b c h w"], other: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """KL(N(mean, σ²I) ‖ N(other, σ²I)) = ‖mean − other‖²/(2σ²), in nats, summed over the latent dimensions; σ at least 1e-6."""
    return (mean - other).square().sum(dim=(1, 2, 3)) / (2 * sigma.clamp_min(SMALLEST_SIGMA) ** 2)
