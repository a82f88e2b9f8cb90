"""Supervised fine-tuning of a vision-language model: imitate answers, corrected ones for instance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from mmrlhf.config import check
from mmrlhf.distributed import is_main_process
from mmrlhf.errors import UserError
from mmrlhf.figures import Figures
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.runs import RunResult
from mmrlhf.seeding import seeded
from vlm.losses import token_nll
from vlm.policy import VisionLanguagePolicy
from vlm.preference_data import hold_out, read_answers, rows_that_fit, told
from vlm.training import begin, load_policy, own_batches, own_part, updates_before, warm_up
from vlm.tuning_config import TuningConfig, check_no_kl_budget, validate_tuning


@dataclass(frozen=True, kw_only=True)
class SFTConfig(TuningConfig):
    """Fine-tune a vision-language model on answers to imitate."""

    data: Path
    """Lines {"prompt", "answer", "image"}; or ANSWERS.jsonl, of which the better answers, or SEGMENTS.jsonl, of which the
    corrected ones are imitated."""
    train_batch_size: int = 64
    """Answers an update of the weights."""
    validation: float = 0.05
    """Share of the prompts (about an image) that are held out of training, to measure on; 0 is none."""


def validate(config: SFTConfig) -> None:
    """UserError for a value outside its range."""
    validate_tuning(config)
    check(config, "validation", lambda value: 0 <= value < 1, "0 up to, but not, 1")
    check_no_kl_budget(config)


def train(config: SFTConfig, *, on_epoch: Callable[[dict[str, Any]], None] | None = None) -> RunResult:
    """Passes over the answers; `loss` is minus the mean log-probability of a token, `validation_loss` that of held-out answers.

    UserError where a gradient is no number: the last checkpoint stays as it is.
    """
    validate(config)
    rows = read_answers(config.data)
    data = told(rows)
    policy = load_policy(config, data)
    fits = rows_that_fit(policy, rows, config.too_long)
    kept = [row for row, right in zip(rows, fits, strict=True) if right]
    if not kept:
        raise UserError(f"no answer of {config.data} fits into {policy.reader.max_length} tokens: shorten them")
    learnt, held = hold_out([f"{row.prompt}\n{row.image or ''}" for row in kept], config.validation, config.seed)
    tokens = [policy.tokens(row).ids for row in kept]  # before the run claims its folder: a bad answer leaves nothing
    run = begin("sft", config, data, policy=policy, on_epoch=on_epoch)
    size = config.train_batch_size
    for epoch in run.epochs():
        seen, norms = Figures(), []
        order = torch.tensor(learnt)[torch.randperm(len(learnt), generator=seeded(config.seed, epoch))]
        with tqdm(total=len(order), desc="train", unit="answer", leave=False, disable=not is_main_process()) as bar:
            for number, places in enumerate(order.split(size), start=updates_before(epoch, len(order), size)):
                warm_up(run, number)
                every = sum(len(tokens[i]) for i in places.tolist())
                loss = partial(batch_loss, policy, kept, tokens, every / len(places))
                run.learn(own_part(places), loss, len(places), seen, bar)
                norms.append(run.update(epoch))
        line: dict[str, Any] = {"epoch": epoch, "answers": len(order), "too_long": len(rows) - len(kept)}
        line |= {"loss": seen.means()["nll"] / seen.means()["tokens"], "grad_norm": sum(norms) / len(norms)}
        if held:
            line["validation_loss"] = held_out_loss(policy, kept, tokens, held, config)
        run.record(line | {"seconds": run.seconds()}, {}, ("loss", *(("validation_loss",) if held else ())))
    return run.close()


def batch_loss(
    policy: VisionLanguagePolicy,
    rows: Sequence[Row],
    tokens: Sequence[tuple[int, ...]],
    tokens_per_row: float,
    part: Int[Tensor, " b"],
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The loss of some answers such that each token of an update counts alike, however many go through the model at once.

    Figures a row: `nll`, minus the log-probability of the answer, and `tokens`.
    """
    batch = policy.encode([rows[i] for i in part.tolist()], [tokens[i] for i in part.tolist()])
    loss, figures = token_nll(policy.log_probs(batch), batch.mask)
    per_row = figures["tokens"] / len(part)
    return loss * per_row / tokens_per_row, {"nll": float(loss.detach()) * per_row, "tokens": per_row}


@torch.no_grad()
def held_out_loss(
    policy: VisionLanguagePolicy,
    rows: Sequence[Row],
    tokens: Sequence[tuple[int, ...]],
    held: Sequence[int],
    config: SFTConfig,
) -> float:
    """Minus the mean log-probability of a token of the held-out answers."""
    seen = Figures()
    for part in own_batches(torch.tensor(held), config.micro_batch_size or config.train_batch_size):
        seen.add(len(part), batch_loss(policy, rows, tokens, 1.0, part)[1])
    return seen.means()["nll"] / seen.means()["tokens"]
