"""Losses that turn judgements into a reward: tensors in, (scalar, metrics) out.

For pairs, `margins` are score of the first item minus score of the second, and `labels` the weight of the first in [0, 1], 0.5
a tie. Each loss is the weighted mean over the batch; `weights` need not sum to 1.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
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


def plackett_luce(
    scores: Float[Tensor, "b n"], ranks: Float[Tensor, "b n"], weights: Float[Tensor, " b"] | None = None
) -> tuple[Float[Tensor, ""], Metrics]:
    """−log P(order) = Σ_k [logsumexp(scores not better than place k) − score at place k]; rank 1 is the best, NaN is no item.

    Of equal ranks each is chosen from all that are not better, itself and its equals included (Breslow 1974); nothing is asked
    of the last rank. With ranks 1, 2, 2, … that is the softmax of the best of N. Source: Plackett 1975, Luce 1959.
    """
    present = ~ranks.isnan()
    if not (present.sum(1) >= 2).all():
        raise UserError("a ranking got fewer than 2 items: leave such rankings out")
    filled = ranks.nan_to_num(nan=-math.inf)
    not_better = (filled.unsqueeze(1) >= filled.unsqueeze(2)) & present.unsqueeze(1)  # [b, place, choice]
    spread = torch.where(not_better, scores.unsqueeze(1), -math.inf)
    last = filled == filled.max(dim=1, keepdim=True).values
    asked = present & ~last
    terms = torch.where(asked.unsqueeze(-1), spread, 0.0).logsumexp(-1) - scores  # rows not asked: any finite number
    losses = torch.where(asked, terms, 0.0).sum(1)
    best = torch.where(present, scores.detach(), -math.inf).argmax(1, keepdim=True)
    right = filled.gather(1, best).squeeze(1) == torch.where(present, ranks, math.inf).min(1).values
    return weighted_mean(losses, weights, accuracy=float(right.float().mean()))


def ordinal(
    scores: Float[Tensor, " b"],
    ratings: Int[Tensor, " b"],
    thresholds: Float[Tensor, " levels_less_1"],
    weights: Float[Tensor, " b"] | None = None,
) -> tuple[Float[Tensor, ""], Metrics]:
    """−log P(rating), P(rating > k) = σ(score − threshold_k): proportional odds (McCullagh 1980). Ratings from 1.

    `thresholds` must rise; with one (two levels: a veto) this is the logistic loss.
    """
    if len(ratings) and not 1 <= int(ratings.min()) <= int(ratings.max()) <= len(thresholds) + 1:
        raise UserError(
            f"ratings got {int(ratings.min())} to {int(ratings.max())}, allowed is 1 to {len(thresholds) + 1}"
        )
    end = thresholds.new_full((1,), math.inf)
    low, high = torch.cat([-end, thresholds])[ratings - 1], torch.cat([thresholds, end])[ratings - 1]
    # log(σ(x) − σ(y)) = log σ(x) + log σ(−y) + log(1 − exp(y − x)), which stays exact far from the thresholds
    gap = torch.log(-torch.expm1((low - high).clamp(max=-1e-7)))
    losses = -(F.logsigmoid(scores - low) + F.logsigmoid(high - scores) + gap)
    guessed = 1 + (scores.detach().unsqueeze(1) > thresholds.detach()).sum(1)
    return weighted_mean(losses, weights, accuracy=float((guessed == ratings).float().mean()))


def text_negatives(
    logits: Float[Tensor, "i q"], own: Int[Tensor, " i"], weights: Float[Tensor, " i"] | None = None
) -> tuple[Float[Tensor, ""], Metrics]:
    """Each image should find its own among the batch's `q` different prompts: the cross entropy of its row of `logits`.

    The text side of CLIP's loss (Radford et al. 2021). Prompts must differ, or an equal one would count as wrong.
    """
    losses = F.cross_entropy(logits, own, reduction="none")
    right = logits.detach().argmax(1) == own
    return weighted_mean(losses, weights, accuracy=float(right.float().mean()))


def with_margins(
    margins: Float[Tensor, " b"], labels: Float[Tensor, " b"], wanted: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Score margins less what the preferred side should win by: −log σ(r_w − r_l − m) (Touvron et al. 2023, eq. 2)."""
    return margins - wanted * torch.sign(labels - 0.5)


def smooth_labels(labels: Float[Tensor, " b"], amount: float) -> Float[Tensor, " b"]:
    """Labels of raters who err with probability `amount` in [0, ½): label·(1 − amount) + (1 − label)·amount; ties stay."""
    if not 0 <= amount < 0.5:
        raise UserError(f"label smoothing got {amount}, allowed is 0 to below 0.5")
    return labels * (1 - amount) + (1 - labels) * amount


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
    strict = labels != 0.5
    right = (1 + torch.sign(margins.detach()) * torch.sign(labels - 0.5)) / 2
    return weighted_mean(
        losses,
        weights,
        accuracy=float(right[strict].mean()) if strict.any() else math.nan,
        margin=float(margins.detach().abs().mean()),
    )


def weighted_mean(
    losses: Float[Tensor, " b"], weights: Float[Tensor, " b"] | None, **metrics: float
) -> tuple[Float[Tensor, ""], Metrics]:
    """(mean of the losses, the metrics with it among them)."""
    weights = torch.ones_like(losses) if weights is None else weights
    loss = (weights * losses).sum() / weights.sum()
    return loss, {"loss": float(loss.detach())} | metrics
