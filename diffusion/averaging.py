"""The exponential moving average of the trained weights: smoother pictures than those of the latest update."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.training_utils import EMAModel

from diffusion.policy import DiffusionPolicy


class WeightAverage:
    """w ← decay · w + (1 − decay) · θ after each update, with a decay of at most (1 + n)/(10 + n) after n, 0 in the first."""

    def __init__(self, policy: DiffusionPolicy, decay: float) -> None:
        """Starts at the present weights; a decay of 0 keeps no average, and all below does nothing."""
        self.policy = policy
        self.average = EMAModel(policy.parameters(), decay=decay) if decay else None

    def follow(self) -> None:
        """Take in the weights after an update."""
        if self.average is not None:
            self.average.step(self.policy.parameters())

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the policy has the averaged weights."""
        if self.average is None:
            yield
            return
        weights = self.policy.parameters()
        self.average.store(weights)
        self.average.copy_to(weights)
        try:
            yield
        finally:
            self.average.restore(weights)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {} if self.average is None else self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        if self.average is not None:
            self.average.load_state_dict(state)
            self.average.to(self.policy.device)
