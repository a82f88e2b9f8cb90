"""Losses that turn comparisons into a reward: tensors in, (scalar, metrics) out.

`margins` are score of the first item minus score of the second; `labels` the weight of the first in [0, 1], 0.5 a tie.
Each loss is the weighted mean over the batch; `weights` need not sum to 1.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mmrlhf.errors import UserError

Metrics = dict[str, float]


def bradley_terry(
    margins: Float[Tensor, " b"], labels: Float[Tensor, " b"], weights: Float[Tensor, " b"] | None = None
) -> tuple[Float[Tensor, ""], Metrics]:
    """KL of (label, 1 − label) from (σ(margin), σ(−margin)): the cross entropy less what no scorer can avoid.

    A tie that is scored as a tie costs 0, not log 2. Source: Bradley and Terry 1952; Kirstain et al. 2023 (PickScore).
    """
    won, lost = labels, 1 - labels
    entropy = torch.xlogy(won, won) + torch.xlogy(lost, lost)
    losses = entropy - won * F.logsigmoid(margins) - lost * F.logsigmoid(-margins)
    return finish(losses, margins, labels, weights)


def davidson(
    margins: Float[Tensor, " b"],
    labels: Float[Tensor, " b"],
    log_tie: Float[Tensor, ""],
    weights: Float[Tensor, " b"] | None = None,
) -> tuple[Float[Tensor, ""], Metrics]:
    """−log P(outcome) with ties as a third outcome, P(tie) ∝ exp(log_tie); labels are 0, 0.5 or 1 exactly.

    Source: Davidson 1970, whose ν is exp(log_tie); numerator and denominator are divided by √(e^{r_0 + r_1}).
    """
    logits = torch.stack([-margins / 2, log_tie.expand_as(margins), margins / 2])
    chosen = logits.gather(0, outcomes(labels).unsqueeze(0)).squeeze(0)
    return finish(logits.logsumexp(0) - chosen, margins, labels, weights)


def rao_kupper(
    margins: Float[Tensor, " b"],
    labels: Float[Tensor, " b"],
    threshold: float = 5.0,
    weights: Float[Tensor, " b"] | None = None,
) -> tuple[Float[Tensor, ""], Metrics]:
    """−log P(outcome), P(first wins) = σ(margin − log threshold), and what is left for ties; labels are 0, 0.5 or 1 exactly.

    Source: Rao and Kupper 1967, whose θ > 1 is `threshold`; 5 in HPS v3 (Ma et al. 2025).
    """
    if threshold <= 1:
        raise UserError(f"threshold got {threshold}, allowed is above 1: at 1 a tie has no probability")
    won, lost = F.logsigmoid(margins - math.log(threshold)), F.logsigmoid(-margins - math.log(threshold))
    tied = math.log(threshold**2 - 1) + won + lost  # 1 − P(first wins) − P(second wins), multiplied out
    chosen = torch.stack([lost, tied, won]).gather(0, outcomes(labels).unsqueeze(0)).squeeze(0)
    return finish(-chosen, margins, labels, weights)


def prompt_weights(prompts: Sequence[str]) -> Float[Tensor, " b"]:
    """1 / (number of examples of its prompt), normalised to sum 1, so that every prompt counts alike (PickScore)."""
    counts = Counter(prompts)
    return torch.tensor([1 / (counts[prompt] * len(counts)) for prompt in prompts])


def outcomes(labels: Float[Tensor, " b"]) -> Tensor:
    """0 where the second won, 1 for a tie, 2 where the first won. UserError for a soft label."""
    doubled = 2 * labels
    if not torch.isin(doubled, torch.tensor([0.0, 1.0, 2.0], dtype=labels.dtype, device=labels.device)).all():
        soft = labels[doubled != doubled.round()][0]
        raise UserError(f"labels got {float(soft):g}, allowed are 0, 0.5 and 1: use bradley_terry for soft labels")
    return doubled.long()


def finish(
    losses: Float[Tensor, " b"],
    margins: Float[Tensor, " b"],
    labels: Float[Tensor, " b"],
    weights: Float[Tensor, " b"] | None,
) -> tuple[Float[Tensor, ""], Metrics]:
    """The weighted mean, with the share of strict labels on the right side (a margin of 0 counts half; NaN without any)."""
    weights = torch.ones_like(losses) if weights is None else weights
    loss = (weights * losses).sum() / weights.sum()
    strict = labels != 0.5
    right = (1 + torch.sign(margins.detach()) * torch.sign(labels - 0.5)) / 2
    return loss, {
        "loss": float(loss.detach()),
        "accuracy": float(right[strict].mean()) if strict.any() else math.nan,
        "margin": float(margins.detach().abs().mean()),
    }
