"""An ensemble of small networks on standardised features: the part of a reward that is trained in seconds."""

import math
from collections.abc import Iterable

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
        self,
        features: int,
        *,
        members: int = 4,
        hidden: int = 64,
        levels: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        last = hidden or features
        self.first = nn.Parameter(torch.randn(members, features, hidden, generator=generator) / math.sqrt(features))
        self.bias = nn.Parameter(torch.zeros(members, 1, hidden))
        self.last = nn.Parameter(torch.randn(members, last, generator=generator) / math.sqrt(last))
        self.text_weight = nn.Parameter(torch.zeros(members))
        self.levels = levels
        if levels:
            self.output_bias = nn.Parameter(torch.zeros(members, 1))
            self.gaps = nn.Parameter(torch.full((levels - 2,), 0.5))  # softplus of 0.5 is about 1

    @property
    def members(self) -> int:
        return len(self.text_weight)

    @property
    def thresholds(self) -> Float[Tensor, " levels_less_1"]:
        """Where the score passes from one rating to the next, rising, the middle one (or the middle between two) at 0."""
        places = F.pad(F.softplus(self.gaps).cumsum(0), (1, 0))
        middle = (len(places) - 1) / 2
        return places - (places[math.floor(middle)] + places[math.ceil(middle)]) / 2

    @torch.no_grad()
    def standardise_by(self, parts: Iterable[Float[Tensor, "b f"]]) -> None:
        """Take the mean and spread of these (training) features, given in parts that fit into memory."""
        count, mean, squares = 0, torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        for part in parts:  # Chan et al. 1979: means and sums of squares of two samples, put together
            own, shift = part.mean(dim=0), part.mean(dim=0) - mean
            squares += part.var(dim=0, correction=0) * len(part) + shift**2 * (count * len(part) / (count + len(part)))
            count += len(part)
            mean = own if count == len(part) else mean + shift * (len(part) / count)
        std = (squares / count).sqrt()
        self.mean.copy_(mean)
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
        values = (features - self.mean) / self.std
        if self.first.shape[-1]:
            values = F.gelu(values @ self.first + self.bias)
        else:
            values = values.expand(self.members, -1, -1)
        if dropout:
            kept = torch.rand(values.shape, generator=generator, device=values.device) >= dropout
            values = values * kept / (1 - dropout)
        scores = torch.einsum("kbh,kh->kb", values, self.last) + self.text_weight[:, None] * clip_score
        return scores + self.output_bias if self.levels else scores
