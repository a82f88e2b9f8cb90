"""Fine-tune the towers of a dual encoder on pairs, as PickScore was: softmax over exp(logit_scale)·cosine, prompts alike."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mmrlhf import distributed
from mmrlhf.checkpoint import save_checkpoint
from mmrlhf.data import Pair
from mmrlhf.errors import UserError
from mmrlhf.losses import prompt_weights, text_negatives
from mmrlhf.precision import fast_autocast
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.encoders.dual_encoder import DualEncoder
from mmrlhf.rewards.encoders.loading import ahead
from mmrlhf.rewards.training.fit import held_out_figures
from mmrlhf.rewards.training.pictures import Pictures
from mmrlhf.rewards.training.table import LossName, Objective, outcome_loss, tabulate
from mmrlhf.rewards.training.tuning import Tune, merge, trained_state, unfreeze

TIE_RATE = 1e-2  # Davidson's log_tie is of the order of 1: at a tower's learning rate it would stay where it starts
NO_DECAY_BELOW = 2  # biases, layer norms and logit_scale (under two axes) get no weight decay


def fine_tune(
    pairs: Sequence[Pair],
    held_out: Sequence[Pair],
    backbone: DualEncoder,
    *,
    seed: int,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    batch_size: int,
    warmup_steps: int,
    patience: int,
    tune: Tune = "full",
    last_blocks: int = 2,
    lora_rank: int = 16,
    loss: LossName = "bradley-terry",
    label_smoothing: float = 0.0,
    negatives: float = 0.0,
    weights: Float[Tensor, " n"] | None = None,
    progress: bool = True,
    checkpoint: Path | None = None,
    state: dict[str, Any] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> CLIPReward:
    """Trains the weights of `backbone`, and gives a reward without head. The same for the same seed, on any number of processes.

    After each epoch the whole state goes to `checkpoint`; given back as `state`, training goes on as if it had never stopped.
    With held-out pairs the best epoch by their agreement is kept, and training stops `patience` epochs after it. `negatives`
    weighs `mmrlhf.losses.text_negatives`; `weights` count each pair. A line of metrics has Davidson's `log_tie` too.
    """
    pairs, own = pairs_that_count(pairs, weights)
    model = backbone.model
    unfreeze(backbone, tune, last_blocks=last_blocks, lora_rank=lora_rank, seed=seed)
    log_tie = torch.zeros((), device=backbone.device, requires_grad=True)
    optimizer = make_optimizer(model, learning_rate, weight_decay)
    if loss == "davidson":
        optimizer.add_param_group({"params": [log_tie], "weight_decay": 0.0, "rate": TIE_RATE})
    done: dict[str, Any] = {"epoch": 0, "step": 0, "best": None, "best_model": None, "metrics": []}
    if state is not None:
        model.load_state_dict(state["model"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        log_tie.data.copy_(state["log_tie"])
        done = {key: state[key] for key in done}
    run = Run(backbone, optimizer, pairs, own, Pictures(backbone), Objective(loss, label_smoothing), negatives, log_tie,
              seed, batch_size, learning_rate, warmup_steps, progress and distributed.is_main_process())  # fmt: skip
    stopped = done["best"] is not None and done["epoch"] - 1 - done["best"][2] >= patience
    bar = tqdm(range(done["epoch"], epochs), initial=done["epoch"], total=epochs, desc="reward", unit="epoch",
               disable=not run.progress)  # fmt: skip
    for epoch in bar:
        if stopped:
            break
        started = time.monotonic()
        mean_loss, done["step"] = one_epoch(run, epoch, done["step"])
        line: dict[str, Any] = {"epoch": epoch, "loss": mean_loss}
        if loss == "davidson":
            line["log_tie"] = float(log_tie.detach())
        if held_out:
            line |= held_out_figures(margins_of(run, held_out), labels_of(held_out))
            rank = [line["held_out_agreement"], -line["held_out_loss"]]
            if done["best"] is None or rank > done["best"][:2]:
                done["best"], done["best_model"] = [*rank, epoch], trained_state(model)
            stopped = epoch - done["best"][2] >= patience
            bar.set_postfix(agreement=f"{line['held_out_agreement']:.3f}")
        line["seconds"] = time.monotonic() - started
        done |= {"epoch": epoch + 1, "metrics": [*done["metrics"], line]}
        if checkpoint is not None and distributed.is_main_process():
            now = {
                "model": trained_state(model),
                "optimizer": optimizer.state_dict(),
                "log_tie": log_tie.detach().cpu(),
            }
            save_checkpoint(done | now, checkpoint)
        if on_epoch is not None:
            on_epoch(line)
    bar.close()
    if done["best_model"] is not None:
        model.load_state_dict(done["best_model"], strict=False)
    if tune == "lora":
        merge(model)
    model.requires_grad_(False)
    return CLIPReward(backbone)


@dataclass(frozen=True)
class Run:
    """What stays the same from step to step."""

    backbone: DualEncoder
    optimizer: torch.optim.Optimizer
    pairs: Sequence[Pair]
    weights: Float[Tensor, " n"]
    pictures: Pictures
    objective: Objective
    negatives: float
    log_tie: Tensor
    seed: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    progress: bool


def pairs_that_count(
    pairs: Sequence[Pair], weights: Float[Tensor, " n"] | None
) -> tuple[list[Pair], Float[Tensor, " m"]]:
    """The pairs of weight above 0 and their weights, every prompt alike but for them. UserError where there is none.

    A batch of weight 0 would have no mean.
    """
    given = torch.ones(len(pairs)) if weights is None else weights
    kept = [pair for pair, weight in zip(pairs, given.tolist(), strict=True) if weight > 0]
    if not kept:
        raise UserError(f"got {len(pairs)} pairs to train on, none of weight above 0: give at least one that counts")
    return kept, prompt_weights([pair.prompt for pair in kept]) * given[given > 0]


def one_epoch(run: Run, epoch: int, step: int) -> tuple[float, int]:
    """(mean loss, number of the next step) of one pass; its order follows from the seed and `epoch` alone."""
    generator = torch.Generator().manual_seed(run.seed * 1_000_003 + epoch)
    total, batches = 0.0, order_by_prompt(run.pairs, generator).split(run.batch_size)
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    loaded = ahead(run.pictures.load, [own_paths([run.pairs[row] for row in rows.tolist()]) for rows in batches])
    bar = tqdm(batches, desc=f"epoch {epoch}", unit="batch", leave=False, disable=not run.progress)
    for rows, images in zip(bar, loaded, strict=True):
        batch = [run.pairs[row] for row in rows.tolist()]
        for group in run.optimizer.param_groups:
            group["lr"] = group.get("rate", run.learning_rate) * min(1.0, (step + 1) / max(1, run.warmup_steps))
        loss = batch_loss(run, batch, images, run.weights[rows].to(run.backbone.device))
        if not loss.isfinite():
            raise UserError(f"the loss is no longer a number in epoch {epoch}: lower --learning-rate")
        run.optimizer.zero_grad()
        loss.backward()
        distributed.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        run.optimizer.step()
        total += float(loss.detach()) * len(batch)
        step += 1
    return total / len(run.pairs), step


def batch_loss(
    run: Run, batch: Sequence[Pair], images: Float[Tensor, "i 3 h w"], weights: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """The loss of the whole batch, of which `images` are this process's part."""
    seen, texts, rows, own = embed(run.backbone, batch, images)
    table, _ = tabulate(batch)
    scores = run.backbone.scale * (seen[rows] * texts[own].unsqueeze(1)).sum(-1)
    every = torch.arange(len(batch))
    loss = outcome_loss(scores.unsqueeze(0), table, every, weights.unsqueeze(0), run.objective, log_tie=run.log_tie)
    labels = labels_of(batch).to(weights)
    if run.negatives and len(texts) > 1 and (labels != 0.5).any():
        won = rows.gather(1, (labels < 0.5).long().unsqueeze(1)).squeeze(1)
        logits = run.backbone.scale * seen[won] @ texts.T
        loss = loss + run.negatives * text_negatives(logits, own, weights * (labels != 0.5))[0]
    return loss


def embed(
    backbone: DualEncoder, batch: Sequence[Pair], images: Float[Tensor, "i 3 h w"]
) -> tuple[Float[Tensor, "j p"], Float[Tensor, "q p"], Tensor, Tensor]:
    """(the batch's different images and prompts, gathered from all processes; rows of images "b 2", row of the prompt)."""
    paths, prompts = distinct_paths(batch), list(dict.fromkeys(pair.prompt for pair in batch))
    row, place = ({thing: number for number, thing in enumerate(things)} for things in (paths, prompts))
    mine = [prompts[i] for i in distributed.own_part(len(prompts))]
    with fast_autocast(backbone.device.type):
        # it has a gradient, or the other processes would wait in the backward pass for this one
        empty = torch.zeros(0, backbone.embedding_width, device=backbone.device, requires_grad=torch.is_grad_enabled())
        seen = backbone.embed_images(images) if len(images) else empty
        texts = backbone.embed_prompts(mine) if mine else empty
    seen, texts = distributed.gather(seen.float(), len(paths)), distributed.gather(texts.float(), len(prompts))
    rows = torch.tensor([[row[pair.image_0], row[pair.image_1]] for pair in batch], device=seen.device)
    return seen, texts, rows, torch.tensor([place[pair.prompt] for pair in batch], device=seen.device)


def batch_margins(
    backbone: DualEncoder, batch: Sequence[Pair], pictures: Pictures | None = None
) -> Float[Tensor, " b"]:
    """exp(logit_scale)·(cosine of the first − cosine of the second); each different image is encoded once."""
    images = (pictures or Pictures(backbone)).load(own_paths(batch))
    seen, texts, rows, own = embed(backbone, batch, images)
    return backbone.scale * ((seen[rows[:, 0]] - seen[rows[:, 1]]) * texts[own]).sum(dim=-1)


@torch.no_grad()
def margins_of(run: Run, pairs: Sequence[Pair]) -> Float[Tensor, " n"]:
    """The margins of held-out pairs, on the CPU."""
    starts = range(0, len(pairs), run.batch_size)
    parts = [batch_margins(run.backbone, pairs[start : start + run.batch_size], run.pictures) for start in starts]
    return torch.cat(parts).cpu()


def distinct_paths(batch: Sequence[Pair]) -> list[Path]:
    """The different images of a batch."""
    return list(dict.fromkeys(path for pair in batch for path in (pair.image_0, pair.image_1)))


def own_paths(batch: Sequence[Pair]) -> list[Path]:
    """Those of them that this process encodes."""
    paths = distinct_paths(batch)
    return [paths[i] for i in distributed.own_part(len(paths))]


def order_by_prompt(pairs: Sequence[Pair], generator: torch.Generator) -> Tensor:
    """A random order of prompts with each one's pairs side by side, so that a batch shares texts and images."""
    prompts = {prompt: number for number, prompt in enumerate(dict.fromkeys(pair.prompt for pair in pairs))}
    place = torch.randperm(len(prompts), generator=generator)
    shuffled = torch.randperm(len(pairs), generator=generator)
    keys = torch.tensor([int(place[prompts[pairs[row].prompt]]) for row in shuffled.tolist()])
    return shuffled[keys.argsort(stable=True)]


def labels_of(pairs: Sequence[Pair]) -> Float[Tensor, " n"]:
    return torch.tensor([pair.label_0 for pair in pairs])


def make_optimizer(model: torch.nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the weights that have gradients; weight decay on matrices and kernels only."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= NO_DECAY_BELOW], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < NO_DECAY_BELOW], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate, fused=True)
