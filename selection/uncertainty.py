"""How much an answer to a pair would teach an ensemble of scorers, read from its members' margins."""

import torch
from jaxtyping import Float
from torch import Tensor


def bald(margins: Float[Tensor, "k b"]) -> Float[Tensor, " b"]:
    """Information, in nats, that an answer gives about which of `k` members is right: H(mean p) - mean H(p), p = σ(margin).

    From 0, where the members agree (also when all call it a tie), to log 2, where half of them are sure of each side.
    Bayesian Active Learning by Disagreement (Houlsby et al. 2011).
    """
    chance = torch.sigmoid(margins.double())
    information = binary_entropy(chance.mean(0)) - binary_entropy(chance).mean(0)
    return information.clamp(min=0).to(margins.dtype)


def margin_uncertainty(margins: Float[Tensor, "k b"]) -> Float[Tensor, " b"]:
    """How near a tie the mean prediction is: 1 - |2·mean p - 1|, from 0 (sure) to 1 (tie). True ties stay at 1 for ever."""
    return 1 - (2 * torch.sigmoid(margins.double()).mean(0) - 1).abs().to(margins.dtype)


def disagreement(margins: Float[Tensor, "k b"]) -> Float[Tensor, " b"]:
    """Standard deviation of the members' p = σ(margin), from 0 to ½."""
    return torch.sigmoid(margins.double()).std(0, correction=0).to(margins.dtype)


def binary_entropy(chance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """-p log p - (1-p) log(1-p) in nats, 0 at p = 0 and 1."""
    return torch.special.entr(chance) + torch.special.entr(1 - chance)
