"""The scorer of single positions behind a segment reward, and the losses that teach it from spans and whole sequences."""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmrlhf.losses import Metrics, bradley_terry, ordinal, weighted_mean
from mmrlhf.rewards.head import HeadEnsemble
from mmrlhf.rewards.segments.labels import LabelTable

Pooling = Literal["mean", "sum"]


class SegmentHead(nn.Module):
    """A reward for every position, by `k` members; see `label_loss` for how the kinds of labels share one scale.

    The reward of a span is the mean, or the sum, of those of its positions (`pooling`). Its unit is that of the scores where
    there are scores; else it is the logit of the tags, and 0 lies in the middle between misleading and correct; with
    comparisons alone the logit of being preferred. `log_tag_scale`, `log_pair_scale` and `centre` bring the other kinds to it.
    """

    unit: Tensor

    def __init__(
        self,
        features: int,
        *,
        members: int = 4,
        hidden: int = 64,
        levels: int = 3,
        pooling: Pooling = "mean",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.pooling: Pooling = pooling
        self.scorer = HeadEnsemble(features, members=members, hidden=hidden, levels=levels, generator=generator)
        self.scorer.text_weight.requires_grad_(False)  # there is no CLIP score here
        self.register_buffer("unit", torch.ones(()))
        self.log_tag_scale, self.log_pair_scale, self.centre = (nn.Parameter(torch.zeros(())) for _ in range(3))

    @torch.no_grad()
    def start_from(
        self, features: Iterable[Float[Tensor, "n f"]], table: LabelTable, mask: Bool[Tensor, "b t"]
    ) -> None:
        """Take the spread of the training features and scores, start at the mean score, and freeze what sets the unit."""
        self.scorer.standardise_by(features)
        scored = table.ratings == 0
        has_scores, has_tags = bool(scored.any()), bool((~scored).any())
        self.centre.requires_grad_(has_scores and has_tags)
        self.log_tag_scale.requires_grad_(has_scores and has_tags)
        self.log_pair_scale.requires_grad_(has_scores or has_tags)
        if has_scores:
            spread = float(table.scores[scored].std(correction=0))
            self.unit.fill_(spread or 1.0)
            sizes = pool_spans(mask.float().unsqueeze(0), mask, table.spans[scored], self.pooling)
            middle = float(table.scores[scored].mean() / self.unit)
            self.scorer.output_bias.fill_(middle / float(sizes.mean()))
            self.centre.fill_(middle)  # where tags change is unknown: a guess that is of the scores' size

    def forward(
        self,
        features: Float[Tensor, "b t f"],
        mask: Bool[Tensor, "b t"],
        *,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "k b t"]:
        """The reward of each position by each member, 0 where `mask` says that there is none."""
        there = features[mask]
        scores = self.scorer(there, there.new_zeros(len(there)), dropout=dropout, generator=generator)
        rewards = scores.new_zeros(self.scorer.members, *mask.shape)
        rewards[:, mask] = self.unit * scores
        return rewards


def pool_spans(
    rewards: Float[Tensor, "k b t"], mask: Bool[Tensor, "b t"], spans: Int[Tensor, "n 3"], pooling: Pooling
) -> Float[Tensor, "k n"]:
    """Mean or sum of the rewards of each span (row, start, end), over the positions that `mask` has; NaN for a mean over none.

    Each span is summed by itself: what stands before it leaves no rounding error behind, nor a NaN.
    """
    row, start, end = spans.unbind(1)
    sizes = end - start
    own = torch.repeat_interleave(torch.arange(len(spans), device=spans.device), sizes)
    place = torch.arange(len(own), device=spans.device) - (sizes.cumsum(0) - sizes)[own] + start[own]
    kept = mask[row[own], place]
    own, row, place = own[kept], row[own][kept], place[kept]
    sums = rewards.new_zeros(len(rewards), len(spans)).index_add(1, own, rewards[:, row, place])
    return sums if pooling == "sum" else sums / torch.bincount(own, minlength=len(spans))


def label_loss(
    head: SegmentHead,
    rewards: Float[Tensor, "k b t"],
    mask: Bool[Tensor, "b t"],
    table: LabelTable,
    counts: Float[Tensor, "k b"] | None = None,
) -> tuple[Float[Tensor, ""], Metrics]:
    """The weighted mean loss of the labels, each kind by its own likelihood, so that every label counts alike.

    With R the reward of a span in units of `head.unit`: tags by proportional odds on e^a (R − centre) (`losses.ordinal`),
    scores by half the squared error of R, comparisons by Bradley–Terry on e^b times the difference of the sums over all
    positions (Christiano et al. 2017, eq. 1). `counts` is how often a member's resample holds each row, a comparison going
    with its first. Metrics: `tag_accuracy`, `score_rmse` (in units of the scores), `pair_accuracy`, of what there is.
    """
    members = len(rewards)
    counts = rewards.new_ones(members, len(mask)) if counts is None else counts
    weights = (counts[:, table.spans[:, 0]] * table.weights, counts[:, table.pairs[:, 0]] * table.pair_weights)
    values = pool_spans(rewards, mask, table.spans, head.pooling) / head.unit
    totals = (rewards * mask).sum(-1) / head.unit
    tagged, parts, metrics = table.ratings > 0, [], {}
    if tagged.any():
        logits, own = head.log_tag_scale.exp() * (values[:, tagged] - head.centre), weights[0][:, tagged]
        ratings = table.ratings[tagged].repeat(members)
        loss, figures = ordinal(logits.flatten(), ratings, head.scorer.thresholds, own.flatten())
        parts.append((loss, own.sum()))
        metrics["tag_accuracy"] = figures["accuracy"]
    if not tagged.all():
        errors, own = values[:, ~tagged] - table.scores[~tagged] / head.unit, weights[0][:, ~tagged]
        loss, _ = weighted_mean((0.5 * errors.square()).flatten(), own.flatten())
        parts.append((loss, own.sum()))
        metrics["score_rmse"] = float((2 * loss.detach()).sqrt() * head.unit)
    if len(table.pairs):
        margins = head.log_pair_scale.exp() * (totals[:, table.pairs[:, 0]] - totals[:, table.pairs[:, 1]])
        loss, figures = bradley_terry(margins.flatten(), table.outcomes.repeat(members), weights[1].flatten())
        parts.append((loss, weights[1].sum()))
        metrics["pair_accuracy"] = figures["accuracy"]
    whole = torch.stack([weight for _, weight in parts]).sum()
    return torch.stack([loss * (weight / whole) for loss, weight in parts]).sum(), metrics
