"""Several rewards as one by rank, which needs no common scale: for choosing among the candidates of one prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.errors import UserError
from mmrlhf.types import Images, Reward


@dataclass(frozen=True)
class RankCombination:
    """Ranks the images of each prompt in the batch by every reward, and takes the weighted mean of the ranks (Borda's count).

    No `Reward`: a score depends on the other images of its prompt, so a batch must hold all candidates. For best-of-N.
    """

    rewards: tuple[Reward, ...]
    weights: tuple[float, ...]

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        with torch.no_grad():
            scores = torch.stack([reward(images, prompts).double() for reward in self.rewards])
        return rank_within(scores, prompts, self.weights)


def rank_within(scores: Float[Tensor, "k b"], prompts: Sequence[str], weights: Sequence[float]) -> Float[Tensor, " b"]:
    """`rank_combine` within the rows of each prompt."""
    if len(prompts) != scores.shape[1]:
        raise UserError(f"got {len(prompts)} prompts for {scores.shape[1]} scores: give a prompt a score")
    ranks = torch.empty_like(scores[0])
    for prompt in dict.fromkeys(prompts):
        rows = torch.tensor([other == prompt for other in prompts], device=scores.device)
        ranks[rows] = rank_combine(scores[:, rows], weights)
    return ranks


def rank_combine(scores: Float[Tensor, "k b"], weights: Sequence[float]) -> Float[Tensor, " b"]:
    """The weighted mean over k rewards of each candidate's rank, 0 the lowest and 1 the highest; ties share the middle one.

    A candidate is NaN, and takes no rank from the others, where a reward of weight above 0 gives NaN. One alone has rank 1/2.
    UserError where the weights are not k numbers, 0 or more, with a sum above 0.
    """
    share = torch.tensor(weights, dtype=scores.dtype, device=scores.device)
    if len(weights) != len(scores) or not (share.isfinite() & (share >= 0)).all() or not share.sum() > 0:
        raise UserError(
            f"got the weights {list(weights)} for {len(scores)} rewards, allowed is a number each, 0 or more, not all 0: "
            "to like low scores, turn their sign"
        )
    counted = scores[share > 0]
    kept = ~counted.isnan().any(dim=0)
    ranks = torch.stack([mid_ranks(row) for row in counted[:, kept]])
    combined = torch.full_like(scores[0], float("nan"))
    combined[kept] = (share[share > 0] / share.sum()) @ ranks
    return combined


def mid_ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Ranks from 0 to 1: the share of the others that lie below, ties counting half; 1/2 for one alone."""
    if len(values) == 1:
        return torch.full_like(values, 0.5)
    below = (values[:, None] > values).sum(dim=1) + ((values[:, None] == values).sum(dim=1) - 1) / 2
    return (below / (len(values) - 1)).to(values.dtype)
