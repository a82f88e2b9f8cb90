"""What a sampler is: steps from noise to a sample, each a Gaussian whose mean follows from the network's output."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Sampler(Protocol):
    """A schedule cut into steps, noisiest first. Arithmetic on latents is in float32."""

    eta: float
    """How much noise the steps add; 0 is none."""
    timesteps: Int[Tensor, " t"]
    """A number for each step, which rollouts keep."""

    def gaussian_steps(self) -> int:
        """How many steps have noise and so a log-probability; those without can only be the last ones."""
        ...

    def times(self, timesteps: Int[Tensor, " b"]) -> Tensor:
        """The steps as the network counts time, "b"."""
        ...

    def coefficients(self, timesteps: Int[Tensor, " b"], *, noisy: bool = True) -> Any:
        """What `mean` needs, and the step's standard deviation as `sigma` "b"; without noise it is 0."""
        ...

    def mean(
        self, output: Float[Tensor, "b c h w"], latents: Float[Tensor, "b c h w"], at: Any
    ) -> Float[Tensor, "b c h w"]:
        """The step's mean from the network's `output` for `latents`."""
        ...


def column(values: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
    """A number a sample, to be spread over its latents."""
    return values.view(-1, 1, 1, 1)
