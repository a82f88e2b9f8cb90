"""What DPO and Dense DPO share: pairs of answers, the start's log-probabilities measured once, passes, held-out figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from mmrlhf import distributed
from mmrlhf.config import check
from mmrlhf.distributed import is_main_process
from mmrlhf.errors import UserError
from mmrlhf.figures import Figures
from mmrlhf.runs import RunResult
from mmrlhf.seeding import seeded
from vlm.encoding import Encoded
from vlm.losses import changed_tokens, dense_log_prob, dpo_loss, token_nll
from vlm.policy import VisionLanguagePolicy
from vlm.preference_data import Choice, hold_out, read_choices, rows_that_fit, told
from vlm.training import begin, load_policy, own_batches, own_part, updates_before, warm_up
from vlm.tuning_config import TuningConfig, check_no_kl_budget, validate_tuning


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig(TuningConfig):
    """Fine-tune a vision-language model on better and worse answers."""

    data: Path
    """ANSWERS.jsonl with comparisons, or SEGMENTS.jsonl with corrections, of which the corrected answer is the better."""
    beta: float = 0.1
    """How strongly the policy is held to the start."""
    label_smoothing: float = 0.0
    """The chance that a label is wrong."""
    sft_weight: float = 0.0
    """How much imitating the better answers counts beside the comparison (Pang et al. 2024's alpha), so that these do not become
    less likely too: minus the mean log-probability of their tokens."""
    validation: float = 0.05
    """Share of the prompts (about an image) that are held out of training, to measure on; 0 is none."""
    epochs: int = 3
    """Passes over the pairs."""
    learning_rate: float = 5e-6
    """Of AdamW, after a warm-up constant; a LoRA takes ten times as much."""


class Weighting(NamedTuple):
    """How the tokens of an answer add up: those that were changed times `gamma`, over their weights' sum where `normalize`;
    `absorb` and `edits` say what is changed (see `vlm.losses.changed_tokens`)."""

    gamma: float = 1.0
    normalize: bool = False
    absorb: int = 1
    edits: bool = True


class PairTokens(NamedTuple):
    """A pair as tokens: the better answer and the worse one, and which tokens of each differ."""

    choice: Choice
    tokens: tuple[tuple[int, ...], tuple[int, ...]]
    changed: tuple[list[bool], list[bool]]


def validate_preferences(config: PreferenceConfig) -> None:
    """UserError for a value outside its range."""
    validate_tuning(config, above_zero=("beta",), up_to_one=("validation",), not_negative=("sft_weight",))
    check(config, "label_smoothing", lambda value: 0 <= value < 0.5, "0 up to, but not, 0.5")
    check(config, "validation", lambda value: 0 <= value < 1, "0 up to, but not, 1")
    check_no_kl_budget(config)


def train_on_choices(
    name: str,
    config: PreferenceConfig,
    weighting: Weighting,
    on_epoch: Callable[[dict[str, Any]], None] | None,
) -> RunResult:
    """Passes over the pairs; `validation_…` figures are of held-out pairs under the policy at the end of an epoch."""
    choices, undecided = read_choices(config.data)
    data = told([row for choice in choices for row in choice])
    policy = load_policy(config, data)
    fits = rows_that_fit(policy, [row for choice in choices for row in choice], config.too_long)
    kept = [choice for i, choice in enumerate(choices) if fits[2 * i] and fits[2 * i + 1]]
    if not kept:
        raise UserError(f"no pair of {config.data} fits into {policy.reader.max_length} tokens: shorten the answers")
    learnt, held = hold_out([choice.unit for choice in kept], config.validation, config.seed)
    pairs = [tokens_of(policy, choice, weighting) for choice in kept]  # before the run claims its folder, as in sft
    run = begin(name, config, data, policy=policy, on_epoch=on_epoch)
    start = reference_log_probs(policy, pairs, weighting, config)
    size = config.train_batch_size
    for epoch in run.epochs():
        seen, norms = Figures(), []
        order = torch.tensor(learnt)[torch.randperm(len(learnt), generator=seeded(config.seed, epoch))]
        with tqdm(total=len(order), desc="train", unit="pair", leave=False, disable=not is_main_process()) as bar:
            for number, places in enumerate(order.split(size), start=updates_before(epoch, len(order), size)):
                warm_up(run, number)
                length = mean_length(pairs, places)
                loss = partial(batch_loss, policy, pairs, start, weighting, config, length)
                run.learn(own_part(places), loss, len(places), seen, bar)
                norms.append(run.update(epoch))
        line: dict[str, Any] = {
            "epoch": epoch,
            "pairs": len(order),
            "undecided": undecided,
            "too_long": len(choices) - len(kept),
        }
        line |= seen.of_epoch(norms)
        if held:
            line |= held_out_figures(policy, pairs, start, held, weighting, config)
        shown = ("loss", "validation_implicit_accuracy" if held else "implicit_accuracy")
        run.record(line | {"seconds": run.seconds()}, problems(line), shown)
    return run.close()


def tokens_of(policy: VisionLanguagePolicy, choice: Choice, weighting: Weighting) -> PairTokens:
    """The two answers as tokens, and where they differ."""
    better, worse = (policy.tokens(row).ids for row in choice)
    before, after = changed_tokens(worse, better, absorb=weighting.absorb, edits=weighting.edits)
    return PairTokens(choice, (better, worse), (after, before))


def encode_pairs(policy: VisionLanguagePolicy, pairs: Sequence[PairTokens]) -> tuple[Encoded, Bool[Tensor, "b t"]]:
    """Better answers and then the worse ones in one batch, and which of their tokens differ."""
    rows = [pair.choice[side] for side in (0, 1) for pair in pairs]
    batch = policy.encode(rows, [pair.tokens[side] for side in (0, 1) for pair in pairs], share=True)
    changed = torch.zeros_like(batch.mask)
    for i, own in enumerate(pair.changed[side] for side in (0, 1) for pair in pairs):
        changed[i, : len(own)] = torch.tensor(own, device=changed.device)
    return batch, changed


def answer_log_probs(
    policy: VisionLanguagePolicy, pairs: Sequence[PairTokens], weighting: Weighting
) -> Float[Tensor, "2 b"]:
    """The log-probability of each better and each worse answer, as the method weighs its tokens."""
    return answers_and_imitation(policy, pairs, weighting)[0]


def answers_and_imitation(
    policy: VisionLanguagePolicy, pairs: Sequence[PairTokens], weighting: Weighting
) -> tuple[Float[Tensor, "2 b"], Float[Tensor, ""]]:
    """`answer_log_probs`, and minus the mean log-probability of the better answers' tokens, all of which count alike."""
    batch, changed = encode_pairs(policy, pairs)
    log_probs = policy.log_probs(batch)
    found = dense_log_prob(log_probs, batch.mask, changed, weighting.gamma, normalize=weighting.normalize)
    return found.view(2, -1), token_nll(log_probs[: len(pairs)], batch.mask[: len(pairs)])[0]


@torch.no_grad()
def reference_log_probs(
    policy: VisionLanguagePolicy, pairs: Sequence[PairTokens], weighting: Weighting, config: PreferenceConfig
) -> Float[Tensor, "2 n"]:
    """Those of the start, which stay: measured once, each process its part."""
    size = config.micro_batch_size or config.train_batch_size
    own = distributed.own_part(len(pairs))
    found = [torch.zeros(2, 0, device=policy.device)]
    with policy.reference(), tqdm(total=len(own), desc="start", unit="pair", disable=not is_main_process()) as bar:
        for first in own[::size]:
            part = pairs[first : min(first + size, own.stop)]
            found.append(answer_log_probs(policy, part, weighting))
            bar.update(len(part))
    return distributed.gather(torch.cat(found, dim=1).T, len(pairs)).T


def mean_length(pairs: Sequence[PairTokens], places: Int[Tensor, " n"]) -> float:
    """Tokens of a better answer."""
    return sum(len(pairs[i].tokens[0]) for i in places.tolist()) / len(places)


def batch_loss(
    policy: VisionLanguagePolicy,
    pairs: Sequence[PairTokens],
    start: Float[Tensor, "2 n"],
    weighting: Weighting,
    config: PreferenceConfig,
    length: float,
    part: Int[Tensor, " b"],
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The loss of some pairs, and its metrics. `length` is that of a better answer in the update, whose tokens count alike."""
    (chosen, rejected), imitation = answers_and_imitation(policy, [pairs[i] for i in part.tolist()], weighting)
    reference = start[:, part.to(start.device)]
    loss, figures = dpo_loss(chosen, rejected, reference[0], reference[1], config.beta, config.label_smoothing)
    imitation = imitation * (mean_length(pairs, part) / length)
    if config.sft_weight:
        loss = loss + config.sft_weight * imitation
    return loss, {"loss": float(loss.detach()), "chosen_nll": float(imitation.detach())} | figures


@torch.no_grad()
def held_out_figures(
    policy: VisionLanguagePolicy,
    pairs: Sequence[PairTokens],
    start: Float[Tensor, "2 n"],
    held: Sequence[int],
    weighting: Weighting,
    config: PreferenceConfig,
) -> dict[str, float]:
    """The loss and metrics on pairs that were held out."""
    seen = Figures()
    length = mean_length(pairs, torch.tensor(held))
    for part in own_batches(torch.tensor(held), config.micro_batch_size or config.train_batch_size):
        seen.add(len(part), batch_loss(policy, pairs, start, weighting, config, length, part)[1])
    return {f"validation_{name}": value for name, value in seen.means().items()}


def problems(line: dict[str, Any]) -> dict[str, str]:
    """Why a run does not learn, where it shows."""
    found = {}
    if abs(line["implicit_margin"]) < 1e-4 and line["epoch"] > 0:
        found["nothing moves"] = (
            f"the margin between better and worse answers is {line['implicit_margin']:.2g} after {line['epoch'] + 1} epochs: "
            "raise --learning-rate"
        )
    if line["chosen_moved"] < -20 and line["rejected_moved"] < line["chosen_moved"]:
        found["both sides fall"] = (
            f"the better answers became less likely too (by {-line['chosen_moved']:.0f} nats): lower --learning-rate or raise "
            "--beta"
        )
    return found
