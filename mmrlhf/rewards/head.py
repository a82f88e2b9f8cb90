"""An ensemble of small networks on standardised features: the part of a reward that is trained in seconds."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

LEAST_SPREAD = 0.1  # of the mean spread: a feature that hardly varied in training must not be blown up later


class HeadEnsemble(nn.Module):
    """`k` networks with one hidden layer (none if `hidden` is 0), each with its own start, and its weight of the CLIP score.

    Features are standardised with `mean` and `std`. The last layer starts with variance 1 / inputs, so that a fresh head's
    scores spread by about a half and its gradient is usable: ImageReward's N(0, 1 / (d + 1)) through five layers made them
    all alike.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, features: int, *, members: int = 4, hidden: int = 64, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        last = hidden or features
        self.first = nn.Parameter(torch.randn(members, features, hidden, generator=generator) / math.sqrt(features))
        self.bias = nn.Parameter(torch.zeros(members, 1, hidden))
        self.last = nn.Parameter(torch.randn(members, last, generator=generator) / math.sqrt(last))
        self.text_weight = nn.Parameter(torch.zeros(members))

    @property
    def members(self) -> int:
        return len(self.text_weight)

    @torch.no_grad()
    def standardise_by(self, features: Float[Tensor, "b f"]) -> None:
        """Take the mean and spread of these (training) features."""
        std = features.std(dim=0, correction=0)
        self.mean.copy_(features.mean(dim=0))
        self.std.copy_(std.clamp(min=max(LEAST_SPREAD * float(std.mean()), 1e-6)))

    def forward(
        self,
        features: Float[Tensor, "b f"],
        clip_score: Float[Tensor, " b"],
        *,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "k b"]:
        """A score a member and row; `dropout` (with its `generator`) is for training only."""
        values = ((features - self.mean) / self.std).expand(self.members, -1, -1)
        if self.first.shape[-1]:
            values = F.gelu(torch.baddbmm(self.bias, values, self.first))
        if dropout:
            kept = torch.rand(values.shape, generator=generator, device=values.device) >= dropout
            values = values * kept / (1 - dropout)
        return torch.einsum("kbh,kh->kb", values, self.last) + self.text_weight[:, None] * clip_score
