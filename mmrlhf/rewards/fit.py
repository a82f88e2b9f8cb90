"""Train an ensemble of heads on cached features: Bradley–Terry with ties, seconds for a thousand pairs."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from mmrlhf.agreement import pair_agreement
from mmrlhf.data import Pair, split_by_prompt
from mmrlhf.errors import UserError
from mmrlhf.losses import bradley_terry, prompt_weights
from mmrlhf.rewards.backbone import CLIPBackbone
from mmrlhf.rewards.cache import EmbeddedPairs, embed_items
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.head import HeadEnsemble

Report = Callable[[dict[str, Any]], None]


def fit_reward(
    pairs: Sequence[Pair],
    model: str | Path | CLIPBackbone,
    *,
    seed: int,
    epochs: int = 40,
    ensemble: int = 4,
    hidden: int = 64,
    dropout: float = 0.5,
    learning_rate: float = 1e-3,
    weight_decay: float = 10.0,
    batch_size: int = 64,
    validation: float = 0.1,
    patience: int = 10,
    progress: bool = True,
    on_epoch: Report | None = None,
) -> CLIPReward:
    """A `CLIPReward` with `ensemble` heads on the frozen towers of `model`; the same for the same seed.

    A share `validation` of the prompts is held out of training, to keep the epoch of the lowest loss and to stop `patience`
    epochs after it (0, or fewer than 5 prompts: none, and the last epoch is kept). `on_epoch` gets a dict of figures an epoch.
    """
    if not pairs:
        raise UserError("got no pairs to train on: give at least one")
    backbone = model if isinstance(model, CLIPBackbone) else CLIPBackbone.load(model)
    training, held_out = split_for_validation(pairs, validation, seed)
    everything = embed_items(backbone, [*training, *held_out], progress=progress)
    head = fit_head(
        everything,
        training,
        held_out,
        scale=float(backbone.scale),
        head_shape=(ensemble, hidden),
        seed=seed,
        epochs=epochs,
        dropout=dropout,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        batch_size=batch_size,
        patience=patience,
        progress=progress,
        on_epoch=on_epoch,
    )
    return CLIPReward(backbone, head.to(backbone.device))


def split_for_validation(pairs: Sequence[Pair], fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(training, held out) by prompt; nothing is held out where `fraction` is 0 or there are fewer than 5 prompts."""
    if fraction == 0 or len({pair.unit for pair in pairs}) < 5:
        return list(pairs), []
    training, held_out = split_by_prompt(pairs, fraction, seed)
    return training, [pair for pair in held_out if pair.has_label]


def fit_head(
    embedded: EmbeddedPairs,
    training: Sequence[Pair],
    held_out: Sequence[Pair],
    *,
    scale: float,
    head_shape: tuple[int, int],
    seed: int,
    epochs: int,
    dropout: float,
    learning_rate: float,
    weight_decay: float,
    batch_size: int,
    patience: int,
    progress: bool,
    on_epoch: Report | None,
) -> HeadEnsemble:
    """The loop: rows of `embedded` are the training pairs, then those held out. Each member learns from its own resample."""
    generator = torch.Generator().manual_seed(seed)
    members, hidden = head_shape
    count = len(training)
    width = embedded.images.shape[1] + embedded.prompts.shape[1]
    head = HeadEnsemble(width, members=members, hidden=hidden, generator=generator)
    head.standardise_by(torch.cat([pair_inputs(embedded, torch.arange(count), side)[0] for side in (0, 1)]))
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=weight_decay)
    labels = torch.tensor([pair.label_0 for pair in [*training, *held_out]])
    weights = prompt_weights([pair.prompt for pair in training]) * resample_counts(members, count, generator)
    best: tuple[float, int, dict[str, Tensor]] | None = None
    bar = tqdm(range(epochs), desc="reward", unit="epoch", disable=not progress)
    for epoch in bar:
        total, started = 0.0, time.monotonic()
        for rows in torch.randperm(count, generator=generator).split(batch_size):
            margins = pair_scores(head, embedded, rows, scale, dropout, generator)
            own = weights[:, rows].flatten()
            loss, _ = bradley_terry(margins.flatten(), labels[rows].repeat(members), own + 1e-12)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        if not math.isfinite(total):
            raise UserError(f"the loss is no longer a number in epoch {epoch}: lower --learning-rate")
        line: dict[str, Any] = {"epoch": epoch, "loss": total / count}
        if held_out:
            with torch.no_grad():
                margins = pair_scores(head, embedded, torch.arange(count, len(labels)), scale)
            line |= held_out_figures(margins.mean(dim=0), labels[count:])
            held_out_loss = line[
                "held_out_loss"
            ]  # finer than the agreement, which few pairs bring to its maximum by chance
            if best is None or held_out_loss < best[0]:
                best = held_out_loss, epoch, copy.deepcopy(head.state_dict())
            bar.set_postfix(agreement=f"{line['held_out_agreement']:.3f}")
        if on_epoch is not None:
            on_epoch(line | {"seconds": time.monotonic() - started})
        if best is not None and epoch - best[1] >= patience:
            break
    bar.close()
    if best is not None:
        head.load_state_dict(best[2])
    return head


def pair_inputs(embedded: EmbeddedPairs, rows: Int[Tensor, " b"], side: int) -> tuple[Tensor, Tensor]:
    """(features "b f", cosine " b") of the first or second images of some pairs."""
    images, texts = embedded.images[embedded.image_rows[rows, side]], embedded.prompts[embedded.prompt_rows[rows]]
    return torch.cat([images, texts], dim=-1), (images[:, : texts.shape[1]] * texts).sum(dim=-1)


def pair_scores(
    head: HeadEnsemble,
    embedded: EmbeddedPairs,
    rows: Int[Tensor, " b"],
    scale: float,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "k b"]:
    """Each member's margin of each pair."""
    (first, cosine_0), (second, cosine_1) = (pair_inputs(embedded, rows, side) for side in (0, 1))
    scores = head(
        torch.cat([first, second]), scale * torch.cat([cosine_0, cosine_1]), dropout=dropout, generator=generator
    )
    return scores[:, : len(rows)] - scores[:, len(rows) :]


def resample_counts(members: int, count: int, generator: torch.Generator) -> Float[Tensor, "k n"]:
    """How often each member's bootstrap resample holds each pair; a single member sees every pair once."""
    if members == 1:
        return torch.ones(1, count)
    drawn = torch.randint(count, (members, count), generator=generator)
    return torch.stack([torch.bincount(row, minlength=count) for row in drawn]).float()


def held_out_figures(margins: Float[Tensor, " b"], labels: Float[Tensor, " b"]) -> dict[str, float]:
    """Loss and agreement (a tie in the label gives half) on held-out pairs."""
    loss, _ = bradley_terry(margins, labels)
    agreement = float(pair_agreement((0.5 + 0.5 * margins.sign()).numpy(), labels.numpy()).mean())
    if not math.isfinite(float(loss)):
        raise UserError("the loss is no longer a number: lower --learning-rate")
    return {"held_out_loss": float(loss), "held_out_agreement": agreement}
