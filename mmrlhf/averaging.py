"""The exponential moving average of the trained weights: steadier than those of the latest update."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mmrlhf.sharding import like


@runtime_checkable
class HasWeights(Protocol):
    """Something that is trained."""

    def parameters(self) -> list[nn.Parameter]: ...


class WeightAverage:
    """w ← decay · w + (1 − decay) · θ after each update, with a decay of at most (1 + n)/(10 + n) after n, 0 in the first.

    It computes, and keeps in checkpoints, what the EMAModel of diffusers does.
    """

    def __init__(self, policy: HasWeights, decay: float) -> None:
        """Starts at the present weights; a decay of 0 keeps no average, and all below does nothing."""
        self.policy, self.decay, self.updates = policy, decay, 0
        self.average = [weight.detach().clone() for weight in policy.parameters()] if decay else []

    @torch.no_grad()
    def follow(self) -> None:
        """Take in the weights after an update."""
        if not self.decay:
            return
        n = self.updates
        self.updates += 1
        decay = min((1 + n) / (10 + n), self.decay) if n else 0.0
        for kept, weight in zip(self.average, self.policy.parameters(), strict=True):
            kept.sub_((1 - decay) * (kept - weight))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the policy has the averaged weights."""
        if not self.decay:
            yield
            return
        own = [weight.detach().cpu().clone() for weight in self.policy.parameters()]
        fill(self.policy.parameters(), self.average)
        try:
            yield
        finally:
            fill(self.policy.parameters(), own)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"optimization_step": self.updates, "shadow_params": self.average} if self.decay else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave; {} changes nothing."""
        if self.decay and state:
            self.updates = state["optimization_step"]
            fill(self.average, state["shadow_params"])


@torch.no_grad()
def fill(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write values into tensors, wherever either lie; whole values also into tensors that are split over processes."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(like(value, tensor))
