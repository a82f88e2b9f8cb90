"""Train a reward that reads: Bradley–Terry on pairs of answers or of images, from the head alone to all weights."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from mmrlhf import distributed
from mmrlhf.checkpoint import save_checkpoint
from mmrlhf.errors import UserError
from mmrlhf.losses import bradley_terry, smooth_labels, with_margins
from mmrlhf.rewards.language.comparisons import (
    Comparison,
    Comparisons,
    asked,
    asked_weights,
    compare,
    pairs_that_fit,
    rows_of,
)
from mmrlhf.rewards.language.learners import Learner, head_learner, network_learner
from mmrlhf.rewards.language.model import LanguageReward
from mmrlhf.rewards.training.fit import held_out_figures
from mmrlhf.rewards.training.towers import make_optimizer
from mmrlhf.rewards.training.tuning import trained_state


class Step(NamedTuple):
    """How an update is made."""

    batch_size: int
    micro_batch_size: int
    learning_rate: float
    warmup_steps: int
    centre: float


def train_language(
    pairs: Sequence[Comparison],
    held_out: Sequence[Comparison],
    reward: LanguageReward,
    *,
    tune: str,
    seed: int,
    epochs: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    batch_size: int = 64,
    micro_batch_size: int | None = None,
    warmup_steps: int = 0,
    patience: int = 10,
    label_smoothing: float = 0.0,
    centre: float = 0.0,
    weights: Float[Tensor, " n"] | None = None,
    lora_rank: int = 16,
    lora_alpha: float | None = None,
    last_blocks: int = 2,
    bf16: bool = False,
    gradient_checkpointing: bool = False,
    progress: bool = True,
    checkpoint: Path | None = None,
    state: dict[str, Any] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> LanguageReward:
    """Trains `reward` itself and gives it back, at temperature 1; the same for the same seed. Dropout is off throughout.

    `tune`: "head" on a frozen backbone that reads each row once, "lora" (merged at the end), the "last" `last_blocks`, or
    "full". `micro_batch_size` pairs are read at a time; the update is that of the whole batch. `centre` is the coefficient of
    the mean (score + score)² (0.01 in Eisenstein et al. 2023). Every prompt counts alike; `weights` count each pair. After each
    epoch the state goes to `checkpoint`; given back as `state`, training goes on as if it had never stopped. With held-out
    pairs the best epoch by their agreement is kept, and training stops `patience` epochs after it.
    """
    if weights is not None and len(weights) != len(pairs):
        raise UserError(f"got {len(weights)} weights for {len(pairs)} pairs: give one a pair")
    progress = progress and distributed.is_main_process()
    everything, training, held_out, weights = prepare(pairs, held_out, reward, weights)
    count = len(training)
    learner = (
        head_learner(reward, everything, count, bf16, progress) if tune == "head" else
        network_learner(reward, everything.rows, bf16, gradient_checkpointing, tune=tune, lora_rank=lora_rank,
                        lora_alpha=lora_alpha, last_blocks=last_blocks, seed=seed)
    )  # fmt: skip
    labels = smooth_labels(everything.labels[:count], label_smoothing)
    equal = with_margins(torch.zeros(count), labels, everything.wanted[:count])
    chance = float(bradley_terry(equal, labels, weights)[0])
    step = Step(batch_size, micro_batch_size or batch_size, learning_rate, warmup_steps, centre)
    optimizer = make_optimizer(learner.module, learning_rate, weight_decay)
    done: dict[str, Any] = {"epoch": 0, "step": 0, "best": None, "best_weights": None, "metrics": []}
    if state is not None:
        learner.module.load_state_dict(state["weights"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        done = {key: state[key] for key in done}
    stopped = done["best"] is not None and done["epoch"] - 1 - done["best"][2] >= patience
    bar = tqdm(range(done["epoch"], epochs), initial=done["epoch"], total=epochs, desc="reward", unit="epoch",
               disable=not progress)  # fmt: skip
    for epoch in bar:
        if stopped:
            break
        started = time.monotonic()
        order = order_by_asked(training, torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        loss, margin, done["step"] = one_epoch(learner, optimizer, everything, labels, weights, order, done["step"], step,
                                               progress)  # fmt: skip
        tell_if_stuck(epoch, loss, chance, margin, learning_rate, tune)
        line: dict[str, Any] = {"epoch": epoch, "loss": loss}
        if held_out:
            line |= held_out_figures(margins_of(learner, everything, count, step), everything.labels[count:])
            rank = [line["held_out_agreement"], -line["held_out_loss"]]
            if done["best"] is None or rank > done["best"][:2]:
                done |= {"best": [*rank, epoch], "best_weights": trained_state(learner.module)}
            stopped = epoch - done["best"][2] >= patience
            bar.set_postfix(agreement=f"{line['held_out_agreement']:.3f}")
        line["seconds"] = time.monotonic() - started
        done |= {"epoch": epoch + 1, "metrics": [*done["metrics"], line]}
        if checkpoint is not None and distributed.is_main_process():
            save_checkpoint(
                done | {"weights": trained_state(learner.module), "optimizer": optimizer.state_dict()}, checkpoint
            )
        if on_epoch is not None:
            on_epoch(line)
    bar.close()
    if done["best_weights"] is not None:
        learner.module.load_state_dict(done["best_weights"], strict=False)
    learner.finish()
    return reward.with_temperature(1.0, 0.0)


def prepare(
    pairs: Sequence[Comparison],
    held_out: Sequence[Comparison],
    reward: LanguageReward,
    weights: Float[Tensor, " n"] | None,
) -> tuple[Comparisons, list[Comparison], list[Comparison], Float[Tensor, " m"]]:
    """(the table of all pairs, training ones first; the training and the held-out ones that fit; weights of the former)."""
    rows = [row for pair in [*pairs, *held_out] for row in rows_of(pair)]
    reward.needs_image = False
    reward.check_images(rows)
    training = pairs_that_fit(pairs, reward.reader, "training")
    judged = pairs_that_fit(held_out, reward.reader, "held-out")
    if not training:
        raise UserError(f"none of {len(pairs)} pairs is left to train on: give pairs that fit, or --too-long truncate")
    fits = set(map(id, training))
    own = asked_weights(training) * (1.0 if weights is None else weights[[id(pair) in fits for pair in pairs]])
    everything = compare([*training, *judged], reward.criteria)
    reward.needs_image = all(row.image is not None for row in everything.rows)
    return everything, training, judged, own


def one_epoch(
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    everything: Comparisons,
    labels: Float[Tensor, " n"],
    weights: Float[Tensor, " n"],
    order: Int[Tensor, " n"],
    step: int,
    how: Step,
    progress: bool,
) -> tuple[float, float, int]:
    """(mean loss, mean size of the margins, number of the next step) of one pass over the pairs in `order`."""
    total, margin = 0.0, 0.0
    for batch in tqdm(order.split(how.batch_size), desc="epoch", unit="batch", leave=False, disable=not progress):
        for group in optimizer.param_groups:
            group["lr"] = how.learning_rate * min(1.0, (step + 1) / max(1, how.warmup_steps))
        optimizer.zero_grad()
        for part in batch.split(how.micro_batch_size):
            share = float(weights[part].sum() / weights[batch].sum())
            first, second = pair_scores(learner, everything, part)
            own = weights[part].to(first.device)
            told, wanted = (values[part].to(first.device) for values in (labels, everything.wanted))
            loss, metrics = bradley_terry(with_margins(first - second, told, wanted), told, own)
            if not loss.isfinite():
                raise UserError("the loss is no longer a number: lower --learning-rate")
            off_centre = ((first + second) ** 2 * own).sum() / own.sum()
            (share * (loss + how.centre * off_centre)).backward()
            total += metrics["loss"] * share * len(batch)
            margin += float((first - second).detach().abs().sum())
        if learner.shared:
            distributed.average_gradients(value for value in learner.module.parameters() if value.requires_grad)
        torch.nn.utils.clip_grad_norm_(learner.module.parameters(), 1.0)
        optimizer.step()
        step += 1
    return total / len(order), margin / len(order), step


def pair_scores(
    learner: Learner, everything: Comparisons, part: Int[Tensor, " b"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Both sides' scores of some pairs by each pair's own criterion; a row that several of them share is read once."""
    numbers, place = everything.compared[part].unique(return_inverse=True)
    scores = learner.score_rows(numbers)
    own = scores[place.to(scores.device), everything.criterion[part].unsqueeze(1).to(scores.device)]
    return own[:, 0], own[:, 1]


@torch.no_grad()
def margins_of(learner: Learner, everything: Comparisons, start: int, how: Step) -> Float[Tensor, " m"]:
    """The margins of the pairs from number `start` on, on the CPU."""
    parts = torch.arange(start, len(everything.labels)).split(how.micro_batch_size)
    sides = [pair_scores(learner, everything, part) for part in parts]
    return torch.cat([(first - second).float().cpu() for first, second in sides])


def order_by_asked(pairs: Sequence[Comparison], generator: torch.Generator) -> Int[Tensor, " n"]:
    """A random order of prompts with each one's pairs side by side, so that a batch shares rows."""
    names = [asked(pair) for pair in pairs]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    place = torch.randperm(len(number), generator=generator)
    shuffled = torch.randperm(len(pairs), generator=generator)
    keys = place[torch.tensor([number[names[i]] for i in shuffled.tolist()])]
    return shuffled[keys.argsort(stable=True)]


def tell_if_stuck(epoch: int, loss: float, chance: float, margin: float, learning_rate: float, tune: str) -> None:
    """One line where the loss of an epoch is still `chance`, the one of equal scores (log 2 for strict labels)."""
    if abs(loss - chance) >= 1e-3 or not distributed.is_main_process():
        return
    cause = (
        f"scores hardly differ (by {margin:.2g}): raise --learning-rate (now {learning_rate:g})" if margin < 0.01 else
        "look whether label_0 is the weight of the first, whether labels contradict each other, and whether the two differ in "
        f"what the model reads; --train {tune} may also be too little"
    )  # fmt: skip
    tqdm.write(
        f"note: nothing is learnt in epoch {epoch}: the loss is {loss:.4f}, that of equal scores {chance:.4f}; {cause}"
    )
