"""The value function of PPO on answers: a linear head that foretells, from the policy's own states, the rewards to come."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from mmrlhf.figures import Figures
from mmrlhf.rl import value_loss


class Critic:
    """V of the state that each token is drawn from; 0 everywhere at the start.

    It learns in passes of its own over an epoch's states, which are cheap, and in units of the spread that the rewards to come
    had in the first epoch: so `clip`, how far a value moves in an epoch (0: no limit), fits rewards of any size.
    """

    def __init__(
        self, width: int, device: torch.device, *, learning_rate: float, clip: float, epochs: int, batch_size: int
    ) -> None:
        self.head = skip_init(nn.Linear, width, 1, device=device)
        for weight in self.head.parameters():
            nn.init.zeros_(weight)
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=learning_rate)
        self.clip, self.epochs, self.batch_size = clip or float("inf"), epochs, batch_size
        self.scale = 0.0  # not known yet

    def fit_scale(self, rewards: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]) -> None:
        """In the first epoch, take the unit from the spread of the rewards to come at each token of `mask`."""
        if not self.scale:
            coming = rewards.flip(1).cumsum(1).flip(1)[mask]
            spread = float(coming.std(correction=0))
            self.scale = spread if spread > 1e-6 * max(1.0, float(coming.abs().mean())) else 1.0

    def standard(self, states: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """Values in its own unit; 0 outside `mask`. Gradients reach the states."""
        # over the width, so that a learning rate moves values of states of any width alike
        features = F.layer_norm(states.float(), states.shape[-1:]) / states.shape[-1]
        return self.head(features).squeeze(-1) * mask

    @torch.no_grad()
    def values(self, states: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """Values in the reward's unit, on the CPU; a part of the answers at a time."""
        device = self.head.weight.device
        parts = zip(states.split(self.batch_size), mask.split(self.batch_size), strict=True)
        return self.scale * torch.cat([self.standard(own.to(device), kept.to(device)).cpu() for own, kept in parts])

    def loss(
        self,
        states: Float[Tensor, "b t d"],
        old_values: Float[Tensor, "b t"],
        returns: Float[Tensor, "b t"],
        mask: Bool[Tensor, "b t"],
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """`value_loss` in its own unit; `old_values` and `returns` in the reward's."""
        old, wanted = old_values.to(states.device) / self.scale, returns.to(states.device) / self.scale
        return value_loss(self.standard(states, mask), old, wanted, self.clip, mask)

    def learn(
        self,
        states: Float[Tensor, "b t d"],
        old_values: Float[Tensor, "b t"],
        returns: Float[Tensor, "b t"],
        mask: Bool[Tensor, "b t"],
        rows: Int[Tensor, " n"],
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Passes over some of the answers. Metrics: `value_loss`, the mean over them all."""
        device, seen = self.head.weight.device, Figures()
        for _ in range(self.epochs):
            order = rows[torch.randperm(len(rows), generator=generator)]
            for part in order.tensor_split(-(-len(order) // self.batch_size)):
                loss, figures = self.loss(
                    states[part].to(device), old_values[part], returns[part], mask[part].to(device)
                )
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                seen.add(len(part), figures)
        self.optimizer.zero_grad()
        return seen.means()

    def state_dict(self) -> dict[str, Any]:
        """Head, optimizer and unit, for a checkpoint."""
        return {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict(), "scale": self.scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scale = state["scale"]
