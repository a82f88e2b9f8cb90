"""Fine-tune a whole CLIPModel on pairs, as PickScore was: softmax over exp(logit_scale)·cosine, ties ½, equal prompt weights."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mmrlhf.checkpoint import save_checkpoint
from mmrlhf.data import Pair
from mmrlhf.errors import UserError
from mmrlhf.losses import bradley_terry, prompt_weights
from mmrlhf.rewards.backbone import CLIPBackbone
from mmrlhf.rewards.cache import load_preprocessed
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.fit import held_out_figures

NO_DECAY_BELOW = 2  # biases, layer norms and logit_scale (under two axes) get no weight decay


def fine_tune(
    pairs: Sequence[Pair],
    held_out: Sequence[Pair],
    backbone: CLIPBackbone,
    *,
    seed: int,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    batch_size: int,
    warmup_steps: int,
    patience: int,
    progress: bool = True,
    checkpoint: Path | None = None,
    state: dict[str, Any] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> CLIPReward:
    """Trains the weights of `backbone`, and gives a reward without head. The same for the same seed.

    After each epoch the whole state goes to `checkpoint`; given back as `state`, training goes on as if it had never stopped.
    With held-out pairs the best epoch by their agreement is kept, and training stops `patience` epochs after it.
    """
    model = backbone.model.requires_grad_(True)
    optimizer = make_optimizer(model, learning_rate, weight_decay)
    done: dict[str, Any] = {"epoch": 0, "step": 0, "best": None, "best_model": None, "metrics": []}
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = {key: state[key] for key in done}
    weights = prompt_weights([pair.prompt for pair in pairs])
    stopped = done["best"] is not None and done["epoch"] - 1 - done["best"][2] >= patience
    bar = tqdm(range(done["epoch"], epochs), initial=done["epoch"], total=epochs, desc="reward", unit="epoch",
               disable=not progress)  # fmt: skip
    for epoch in bar:
        if stopped:
            break
        started = time.monotonic()
        loss, done["step"] = one_epoch(
            backbone,
            optimizer,
            pairs,
            weights,
            epoch,
            done["step"],
            seed,
            batch_size,
            learning_rate,
            warmup_steps,
            progress,
        )
        line: dict[str, Any] = {"epoch": epoch, "loss": loss}
        if held_out:
            line |= held_out_figures(margins_of(backbone, held_out, batch_size), labels_of(held_out))
            rank = [line["held_out_agreement"], -line["held_out_loss"]]
            if done["best"] is None or rank > done["best"][:2]:
                done["best"] = [*rank, epoch]
                done["best_model"] = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
            stopped = epoch - done["best"][2] >= patience
            bar.set_postfix(agreement=f"{line['held_out_agreement']:.3f}")
        line["seconds"] = time.monotonic() - started
        done |= {"epoch": epoch + 1, "metrics": [*done["metrics"], line]}
        if checkpoint is not None:
            save_checkpoint(done | {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint)
        if on_epoch is not None:
            on_epoch(line)
    bar.close()
    if done["best_model"] is not None:
        model.load_state_dict(done["best_model"])
    model.requires_grad_(False)
    return CLIPReward(backbone)


def one_epoch(
    backbone: CLIPBackbone,
    optimizer: torch.optim.Optimizer,
    pairs: Sequence[Pair],
    weights: Float[Tensor, " n"],
    epoch: int,
    step: int,
    seed: int,
    batch_size: int,
    learning_rate: float,
    warmup_steps: int,
    progress: bool,
) -> tuple[float, int]:
    """(mean loss, number of the next step) of one pass; its order follows from `seed` and `epoch` alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    total, batches = 0.0, order_by_prompt(pairs, generator).split(batch_size)
    for rows in tqdm(batches, desc=f"epoch {epoch}", unit="batch", leave=False, disable=not progress):
        batch = [pairs[row] for row in rows.tolist()]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / max(1, warmup_steps))
        margins = batch_margins(backbone, batch)
        loss, _ = bradley_terry(margins, labels_of(batch).to(margins.device), weights[rows].to(margins.device))
        if not loss.isfinite():
            raise UserError(f"the loss is no longer a number in epoch {epoch}: lower --learning-rate")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(backbone.model.parameters(), 1.0)
        optimizer.step()
        total += float(loss.detach()) * len(batch)
        step += 1
    return total / len(pairs), step


def order_by_prompt(pairs: Sequence[Pair], generator: torch.Generator) -> Tensor:
    """A random order of prompts with each one's pairs side by side, so that a batch shares texts and images."""
    prompts = {prompt: number for number, prompt in enumerate(dict.fromkeys(pair.prompt for pair in pairs))}
    place = torch.randperm(len(prompts), generator=generator)
    shuffled = torch.randperm(len(pairs), generator=generator)
    keys = torch.tensor([int(place[prompts[pairs[row].prompt]]) for row in shuffled.tolist()])
    return shuffled[keys.argsort(stable=True)]


def batch_margins(backbone: CLIPBackbone, batch: Sequence[Pair]) -> Float[Tensor, " b"]:
    """exp(logit_scale)·(cosine of the first − cosine of the second); each different image is encoded once."""
    paths = list(dict.fromkeys(path for pair in batch for path in (pair.image_0, pair.image_1)))
    row = {path: number for number, path in enumerate(paths)}
    images = backbone.embed_images(load_preprocessed(backbone, paths))
    texts = backbone.embed_prompts([pair.prompt for pair in batch])
    first, second = (images[torch.tensor([row[path] for path in side], device=images.device)] for side in
                     ([pair.image_0 for pair in batch], [pair.image_1 for pair in batch]))  # fmt: skip
    return backbone.scale * ((first - second) * texts).sum(dim=-1)


@torch.no_grad()
def margins_of(backbone: CLIPBackbone, pairs: Sequence[Pair], batch_size: int) -> Float[Tensor, " n"]:
    """The margins of held-out pairs, on the CPU."""
    starts = range(0, len(pairs), batch_size)
    return torch.cat([batch_margins(backbone, pairs[start : start + batch_size]).cpu() for start in starts])


def labels_of(pairs: Sequence[Pair]) -> Float[Tensor, " n"]:
    return torch.tensor([pair.label_0 for pair in pairs])


def make_optimizer(model: torch.nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices and kernels only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= NO_DECAY_BELOW], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < NO_DECAY_BELOW], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate)
