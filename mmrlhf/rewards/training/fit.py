"""Train ensembles of heads on cached features, one a criterion: seconds for a thousand judgements."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmrlhf.agreement import pair_agreement
from mmrlhf.data import split_by_prompt
from mmrlhf.datasets.judgements import Judgement
from mmrlhf.errors import UserError
from mmrlhf.losses import bradley_terry, prompt_weights
from mmrlhf.outcomes import Outcome
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.encoders.cache import EmbeddedItems, embed_items
from mmrlhf.rewards.encoders.clip import load_backbone
from mmrlhf.rewards.encoders.dual_encoder import DualEncoder
from mmrlhf.rewards.head import HeadEnsemble
from mmrlhf.rewards.training.epochs import Report, train_epochs
from mmrlhf.rewards.training.table import Objective, OutcomeTable, credits, outcome_loss, tabulate

STANDARDISED_AT_ONCE = 2**26  # bytes of features that are in memory together


@dataclass(frozen=True)
class HeadSettings:
    """How heads are trained; see `fit_reward`."""

    epochs: int = 40
    ensemble: int = 4
    hidden: int = 64
    dropout: float = 0.5
    learning_rate: float = 1e-3
    weight_decay: float = 10.0
    batch_size: int = 64
    patience: int = 10
    objective: Objective = Objective()


def fit_reward(
    outcomes: Sequence[Outcome],
    model: str | Path | DualEncoder,
    *,
    seed: int,
    validation: float = 0.1,
    reliability: Mapping[str, float] | None = None,
    start: CLIPReward | None = None,
    cache: Path | None = None,
    progress: bool = True,
    on_epoch: Report | None = None,
    **settings: Any,
) -> CLIPReward:
    """A `CLIPReward` with an ensemble of heads a criterion on the frozen towers of `model`; the same for the same seed.

    `settings` are the fields of `HeadSettings`. A share `validation` of the prompts is held out of training, to keep the epoch
    of the lowest loss and to stop `patience` epochs after it (0, or fewer than 5 prompts: none, and the last epoch is kept).
    `reliability` is how much the judgements of each annotator count (default 1). `start` gives heads to go on from; `cache`
    is a folder for image features that need not fit into memory. `on_epoch` gets a dict of figures an epoch.
    """
    if not outcomes:
        raise UserError("got no pairs to train on: give at least one")
    how = HeadSettings(**settings)
    backbone = load_backbone(model) if isinstance(model, str | Path) else model
    heads: dict[str, HeadEnsemble] = {} if start is None else dict(start.heads)
    for criterion in sorted({outcome.criterion for outcome in outcomes}):
        training, held_out = split_for_validation([o for o in outcomes if o.criterion == criterion], validation, seed)
        table, items = tabulate([*training, *held_out])
        embedded = embed_items(backbone, items, progress=progress, folder=cache)
        weights = prompt_weights([o.prompt for o in training]) * annotator_weights(training, reliability)
        fit = Fit(embedded, table, len(training), weights, float(backbone.scale), criterion)
        heads[criterion] = fit_head(
            fit, how, start=heads.get(criterion), seed=seed, progress=progress, on_epoch=on_epoch
        ).to(backbone.device)
    return CLIPReward(backbone, heads)


def split_for_validation(outcomes: Sequence[Any], fraction: float, seed: int) -> tuple[list[Any], list[Any]]:
    """(training, held out) by prompt; nothing is held out where `fraction` is 0 or there are fewer than 5 prompts."""
    if fraction == 0 or len({outcome.unit for outcome in outcomes}) < 5:
        return list(outcomes), []
    training, held_out = split_by_prompt(outcomes, fraction, seed)
    return training, [outcome for outcome in held_out if outcome.has_label]


def annotator_weights(outcomes: Sequence[Judgement], reliability: Mapping[str, float] | None) -> Float[Tensor, " n"]:
    """How much each judgement counts for its annotator's sake."""
    return torch.tensor([(reliability or {}).get(outcome.annotator, 1.0) for outcome in outcomes])


@dataclass(frozen=True)
class Fit:
    """What a head learns from: the first `count` rows of the table, weighted, are for training, the others held out."""

    embedded: EmbeddedItems
    table: OutcomeTable
    count: int
    weights: Float[Tensor, " n"]
    scale: float
    criterion: str

    def scores(
        self,
        head: HeadEnsemble,
        rows: Int[Tensor, " b"],
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "k b w"]:
        """Each member's score of each item of some rows of the table, 0 where there is no item."""
        items = self.table.items[rows].T  # all first items, then all second ones, …
        present = items >= 0
        features, cosine = self.embedded.inputs(items[present])
        given = head(features, self.scale * cosine, dropout=dropout, generator=generator)
        scores = given.new_zeros(head.members, *items.shape)
        scores[:, present] = given
        return scores.transpose(1, 2)


def fit_head(
    fit: Fit, how: HeadSettings, *, start: HeadEnsemble | None, seed: int, progress: bool, on_epoch: Report | None
) -> HeadEnsemble:
    """The loop. Each member learns from its own resample of the judgements."""
    generator = torch.Generator().manual_seed(seed)
    head = fresh_head(fit, how, generator) if start is None else going_on(start, fit)
    log_tie = torch.zeros((), requires_grad=True)
    optimizer = make_optimizer(head, log_tie, how)
    weights = fit.weights * resample_counts(head.members, fit.count, generator)

    def one_epoch() -> float:
        total = 0.0
        for rows in torch.randperm(fit.count, generator=generator).split(how.batch_size):
            scores = fit.scores(head, rows, how.dropout, generator)
            thresholds = head.thresholds if head.levels else None
            loss = outcome_loss(scores, fit.table, rows, weights[:, rows] + 1e-12, how.objective, thresholds=thresholds,
                                log_tie=log_tie)  # fmt: skip
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        return total / fit.count

    train_epochs(
        head, how.epochs, how.patience, one_epoch,
        (lambda: figures_of(fit, head)) if len(fit.table) > fit.count else None,
        name=f"reward {fit.criterion}".rstrip(), shown=("agreement", "held_out_agreement"), option="--learning-rate",
        told={"criterion": fit.criterion} if fit.criterion else {}, progress=progress, on_epoch=on_epoch,
    )  # fmt: skip
    return head


def make_optimizer(head: HeadEnsemble, log_tie: Tensor, how: HeadSettings) -> torch.optim.AdamW:
    """AdamW; no weight decay on where ratings are parted and how likely ties are, which a strong one would hold at 0."""
    free = ("gaps", "output_bias")
    decayed = [value for name, value in head.named_parameters() if name not in free]
    others = [value for name, value in head.named_parameters() if name in free]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": [*others, log_tie], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=how.learning_rate, weight_decay=how.weight_decay, fused=True)


def fresh_head(fit: Fit, how: HeadSettings, generator: torch.Generator) -> HeadEnsemble:
    """A head that has seen nothing but the mean and spread of the training items."""
    width = fit.embedded.images.shape[1] + fit.embedded.prompts.shape[1]
    head = HeadEnsemble(width, members=how.ensemble, hidden=how.hidden, levels=fit.table.levels, generator=generator)
    items = fit.table.items[: fit.count].T.flatten()
    at_once = max(1, STANDARDISED_AT_ONCE // (4 * width))
    head.standardise_by(fit.embedded.inputs(part)[0] for part in items[items >= 0].split(at_once))
    return head


def going_on(start: HeadEnsemble, fit: Fit) -> HeadEnsemble:
    """A copy of an earlier head to train further. UserError where it knows no ratings of these levels."""
    if fit.table.levels and start.levels != fit.table.levels:
        raise UserError(
            f"the reward to go on from rates '{fit.criterion}' on {start.levels} levels, the new ratings have "
            f"{fit.table.levels}: bring them to one scale, or train without --start"
        )
    return copy.deepcopy(start).cpu().train().requires_grad_(True)


def resample_counts(members: int, count: int, generator: torch.Generator) -> Float[Tensor, "k n"]:
    """How often each member's bootstrap resample holds each judgement; a single member sees every one once."""
    if members == 1:
        return torch.ones(1, count)
    drawn = torch.randint(count, (members, count), generator=generator)
    return torch.stack([torch.bincount(row, minlength=count) for row in drawn]).float()


@torch.no_grad()
def figures_of(fit: Fit, head: HeadEnsemble) -> dict[str, float]:
    """Loss and agreement of the mean member on the held-out judgements."""
    rows = torch.arange(fit.count, len(fit.table))
    scores = fit.scores(head, rows).mean(dim=0, keepdim=True)
    thresholds = head.thresholds if head.levels else None
    loss = outcome_loss(scores, fit.table, rows, torch.ones(1, len(rows)), Objective(), thresholds=thresholds)
    if not math.isfinite(float(loss)):
        raise UserError("the loss is no longer a number: lower --learning-rate")
    agreement = float(credits(scores[0], fit.table, rows).mean())
    return {"held_out_loss": float(loss), "held_out_agreement": agreement}


def held_out_figures(margins: Float[Tensor, " b"], labels: Float[Tensor, " b"]) -> dict[str, float]:
    """Loss and agreement (a tie in the label gives half) on held-out pairs, from their margins alone."""
    loss, _ = bradley_terry(margins, labels)
    if not math.isfinite(float(loss)):
        raise UserError("the loss is no longer a number: lower --learning-rate")
    agreement = float(pair_agreement((0.5 + 0.5 * margins.sign()).numpy(), labels.numpy()).mean())
    return {"held_out_loss": float(loss), "held_out_agreement": agreement}
