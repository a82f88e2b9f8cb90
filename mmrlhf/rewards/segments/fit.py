"""Train a segment reward: tags, scores and whole-sequence comparisons together, seconds for a thousand labels."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmrlhf.errors import UserError
from mmrlhf.rewards.segments.head import Pooling, SegmentHead, label_loss
from mmrlhf.rewards.segments.labels import LabelTable, SequencePair, SpanLabel, hold_out, tabulate_labels
from mmrlhf.rewards.segments.reward import SegmentReward
from mmrlhf.rewards.training.epochs import Report, train_epochs
from mmrlhf.rewards.training.fit import resample_counts


@dataclass(frozen=True)
class SegmentSettings:
    """How a segment reward is trained; see `fit_segments`."""

    epochs: int = 200
    """Passes over the labelled sequences at most."""
    ensemble: int = 4
    """Members, each with its own start and resample of the sequences."""
    hidden: int = 64
    """Width of a member's hidden layer; 0 makes it linear."""
    dropout: float = 0.2
    """Share of the hidden units switched off in training."""
    learning_rate: float = 3e-3
    """Of AdamW."""
    weight_decay: float = 1.0
    """Of AdamW, on the weights alone."""
    batch_size: int = 32
    """Sequences in an update."""
    patience: int = 20
    """Stop this many epochs after the best."""
    pooling: Pooling = "mean"
    """What the reward of a span is: the mean or the sum of those of its positions."""


def fit_segments(
    features: Float[Tensor, "b t f"],
    mask: Bool[Tensor, "b t"],
    spans: Sequence[SpanLabel],
    pairs: Sequence[SequencePair] = (),
    *,
    seed: int,
    groups: Sequence[Hashable] | None = None,
    validation: float = 0.1,
    progress: bool = True,
    on_epoch: Report | None = None,
    **settings: Any,
) -> SegmentReward:
    """A `SegmentReward` from labels on spans of `b` sequences and comparisons of whole ones; the same for the same seed.

    `settings` are the fields of `SegmentSettings`. A share `validation` of the sequences is held out of training, to keep the
    epoch of the lowest loss and to stop `patience` epochs after it; sequences of one of `groups` (as answers to one prompt),
    and those compared with each other, stay together (0, or fewer than 5 such families: none is held out, and the last epoch is
    kept). `on_epoch` gets a dict of figures an epoch. It trains on the CPU. UserError for labels that are not allowed.
    """
    how = SegmentSettings(**settings)
    check_settings(how, validation)
    features, mask = features.detach().float().cpu(), mask.cpu()
    table = tabulate_labels(spans, pairs, mask)
    labelled = torch.cat([table.spans[:, 0], table.pairs.flatten()]).unique()
    if not features[labelled][mask[labelled]].isfinite().all():
        raise UserError(
            "the features of a labelled sequence are not finite: leave that sequence out, or mend what made them"
        )
    held_out = hold_out(table, len(features), groups, validation, seed)
    training = table.part(~held_out[table.spans[:, 0]], ~held_out[table.pairs[:, 0]])
    rest = table.part(held_out[table.spans[:, 0]], held_out[table.pairs[:, 0]])
    return SegmentReward(fit_head(features, mask, training, rest, how, seed, progress, on_epoch))


def fit_head(
    features: Float[Tensor, "b t f"],
    mask: Bool[Tensor, "b t"],
    training: LabelTable,
    held_out: LabelTable,
    how: SegmentSettings,
    seed: int,
    progress: bool,
    on_epoch: Report | None,
) -> SegmentHead:
    """The loop. Each member learns from its own resample of the sequences."""
    generator = torch.Generator().manual_seed(seed)
    head = SegmentHead(
        features.shape[-1], members=how.ensemble, hidden=how.hidden, levels=training.levels, pooling=how.pooling,
        generator=generator,
    )  # fmt: skip
    used = torch.cat([training.spans[:, 0], training.pairs.flatten()]).unique()
    head.start_from((features[rows][mask[rows]] for rows in used.split(256)), training, mask)
    optimizer = torch.optim.AdamW(parameter_groups(head, how.weight_decay), lr=how.learning_rate)
    drawn = torch.cat([training.spans[:, 0], training.pairs[:, 0]]).unique()  # a comparison goes with its first
    counts = torch.zeros(how.ensemble, len(features))
    counts[:, drawn] = resample_counts(how.ensemble, len(drawn), generator) + 1e-12

    def one_epoch() -> float:
        total = 0.0
        for rows in drawn[torch.randperm(len(drawn), generator=generator)].split(how.batch_size):
            loss = batch_loss(head, features, mask, training.of(rows), counts, how.dropout, generator)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        return total / len(drawn)

    train_epochs(
        head, how.epochs, how.patience, one_epoch,
        (lambda: held_out_figures(head, features, mask, held_out)) if len(held_out) else None,
        name="segment reward", shown=("held_out", "held_out_loss"), option="learning_rate",
        told={}, progress=progress, on_epoch=on_epoch,
    )  # fmt: skip
    return head


def batch_loss(
    head: SegmentHead,
    features: Float[Tensor, "b t f"],
    mask: Bool[Tensor, "b t"],
    table: LabelTable,
    counts: Float[Tensor, "k b"],
    dropout: float,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """The loss of the labels of a batch, of whose rows alone the rewards are computed."""
    rows, own = renumbered(table)
    rewards = head(features[rows], mask[rows], dropout=dropout, generator=generator)
    return label_loss(head, rewards, mask[rows], own, counts[:, rows])[0]


@torch.no_grad()
def held_out_figures(
    head: SegmentHead, features: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"], table: LabelTable
) -> dict[str, float]:
    """Loss and `label_loss`'s metrics of the mean member on labels that were held out."""
    rows, own = renumbered(table)
    rewards = torch.cat([head(features[part], mask[part]).mean(0, keepdim=True) for part in rows.split(256)], dim=1)
    loss, metrics = label_loss(head, rewards, mask[rows], own)
    return {"held_out_loss": float(loss)} | {f"held_out_{name}": value for name, value in metrics.items()}


def renumbered(table: LabelTable) -> tuple[Int[Tensor, " rows"], LabelTable]:
    """(the rows that the labels are about, the table with their places among them)."""
    rows = torch.cat([table.spans[:, 0], table.pairs.flatten()]).unique()
    spans = torch.cat([torch.searchsorted(rows, table.spans[:, :1].contiguous()), table.spans[:, 1:]], dim=1)
    return rows, LabelTable(
        spans, table.ratings, table.scores, table.weights, torch.searchsorted(rows, table.pairs), table.outcomes,
        table.pair_weights, table.levels,
    )  # fmt: skip


def parameter_groups(head: SegmentHead, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay; biases, thresholds and scales, which have a meaning of their own, do not."""
    weights = [head.scorer.first, head.scorer.last]
    others = [p for p in head.parameters() if p.requires_grad and all(p is not weight for weight in weights)]
    return [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def check_settings(how: SegmentSettings, validation: float) -> None:
    """UserError for a value outside its range."""
    checks = [
        ("epochs", how.epochs, how.epochs >= 1, "1 or more"),
        ("ensemble", how.ensemble, how.ensemble >= 1, "1 or more"),
        ("hidden", how.hidden, how.hidden >= 0, "0 or more"),
        ("dropout", how.dropout, 0 <= how.dropout < 1, "from 0 to below 1"),
        ("learning_rate", how.learning_rate, 0 < how.learning_rate < math.inf, "above 0"),
        ("weight_decay", how.weight_decay, 0 <= how.weight_decay < math.inf, "0 or more"),
        ("batch_size", how.batch_size, how.batch_size >= 1, "1 or more"),
        ("patience", how.patience, how.patience >= 1, "1 or more"),
        ("pooling", how.pooling, how.pooling in ("mean", "sum"), "mean or sum"),
        ("validation", validation, 0 <= validation < 1, "from 0 to below 1"),
    ]
    for name, value, right, allowed in checks:
        if not right:
            raise UserError(f"{name} got {value!r}, allowed is {allowed}")
