"""How well a policy denoises given samples: what direct preference methods and regression on samples share."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.families import Conditions
from diffusion.policy import DiffusionPolicy


def denoising_errors(
    policy: DiffusionPolicy,
    clean: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    times: Float[Tensor, " b"],
    conditions: Conditions,
) -> Float[Tensor, " b"]:
    """Mean squared error of the network's answer to each noised sample, over its latent dimensions, with gradients.

    ‖ε − ε_θ‖² of a noise predictor; of v or a flow's velocity likewise. No guidance, as in the models' own training.
    """
    noised = policy.forward.noised(clean, noise, times)
    output = policy.family.call(noised, times, conditions, 1.0)
    return (output - policy.forward.target(clean, noise, times)).square().mean(dim=(1, 2, 3))


@torch.no_grad()
def reference_errors(
    policy: DiffusionPolicy,
    clean: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    times: Float[Tensor, " b"],
    conditions: Conditions,
) -> Float[Tensor, " b"]:
    """The same of the start."""
    with policy.reference():
        return denoising_errors(policy, clean, noise, times, conditions)
