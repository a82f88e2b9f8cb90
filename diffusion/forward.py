"""The forward process: a sample with noise added, and what the network should answer; what methods without log-probs train on."""

from typing import Any, Protocol, runtime_checkable

import torch
from diffusers import DDIMScheduler
from jaxtyping import Float
from torch import Tensor

from diffusion.sampling import column

Latents = Float[Tensor, "b c h w"]


@runtime_checkable
class ForwardProcess(Protocol):
    """Times are as the network counts them: training steps, whole for a DDPM and in between for a flow."""

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
        """Random times, as in the model's own training."""
        ...

    def noised(self, clean: Latents, noise: Latents, times: Float[Tensor, " b"]) -> Latents:
        """The samples at these times."""
        ...

    def target(self, clean: Latents, noise: Latents, times: Float[Tensor, " b"]) -> Latents:
        """What the network should answer to them."""
        ...

    def clean(self, output: Latents, noised: Latents, times: Float[Tensor, " b"]) -> Latents:
        """The sample that an answer amounts to, x̂_0."""
        ...


class VariancePreserving:
    """√ᾱ x + √(1−ᾱ) ε (Ho et al. 2020, eq. 4), answered with ε or v = √ᾱ ε − √(1−ᾱ) x (Salimans & Ho 2022)."""

    def __init__(self, config: Any) -> None:
        scheduler = DDIMScheduler.from_config(config, clip_sample=False)
        self.alphas: Float[Tensor, " steps"] = scheduler.alphas_cumprod.double()
        self.predicts_noise = scheduler.config.prediction_type == "epsilon"

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
        """Uniform over the training steps."""
        return torch.randint(len(self.alphas), (count,), generator=generator).float()

    def noised(self, clean: Latents, noise: Latents, times: Float[Tensor, " b"]) -> Latents:
        """√ᾱ x + √(1−ᾱ) ε."""
        signal, blur = self.parts(times)
        return signal * clean + blur * noise

    def target(self, clean: Latents, noise: Latents, times: Float[Tensor, " b"]) -> Latents:
        """ε, or v."""
        signal, blur = self.parts(times)
        return noise if self.predicts_noise else signal * noise - blur * clean

    def clean(self, output: Latents, noised: Latents, times: Float[Tensor, " b"]) -> Latents:
        """(x_t − √(1−ᾱ) ε̂) / √ᾱ, or √ᾱ x_t − √(1−ᾱ) v̂."""
        signal, blur = self.parts(times)
        return (noised - blur * output) / signal if self.predicts_noise else signal * noised - blur * output

    def parts(self, times: Float[Tensor, " b"]) -> tuple[Float[Tensor, "b 1 1 1"], Float[Tensor, "b 1 1 1"]]:
        """(√ᾱ, √(1−ᾱ))."""
        alpha = self.alphas[times.cpu().long()]
        return column(alpha.sqrt().float().to(times.device)), column((1 - alpha).sqrt().float().to(times.device))


class RectifiedFlow:
    """(1−σ)x + σε, answered with the velocity ε − x (Liu et al. 2022); σ is the time over the training steps."""

    def __init__(self, training_steps: int) -> None:
        self.training_steps = training_steps

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
        """σ = sigmoid of N(0, 1) (Esser et al. 2024, eq. 19 with m 0, s 1)."""
        return torch.randn(count, generator=generator).sigmoid() * self.training_steps

    def noised(self, clean: Latents, noise: Latents, times: Float[Tensor, " b"]) -> Latents:
        """(1−σ)x + σε."""
        level = column(times / self.training_steps)
        return (1 - level) * clean + level * noise

    def target(self, clean: Latents, noise: Latents, times: Float[Tensor, " b"]) -> Latents:
        """ε − x."""
        return noise - clean

    def clean(self, output: Latents, noised: Latents, times: Float[Tensor, " b"]) -> Latents:
        """x_t − σ v̂."""
        return noised - column(times / self.training_steps) * output
