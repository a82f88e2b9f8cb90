"""What PPO and GRPO share: an epoch's answers, what is said of them and how likely they are, and passes over them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
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
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.rl import SMALL_SPREAD, kl_k1
from mmrlhf.seeding import seeded
from mmrlhf.training import Loss, TrainingRun
from vlm.answer_rewards import AnswerReward, Judgement, judged
from vlm.encoding import repeated
from vlm.policy import VisionLanguagePolicy
from vlm.preference_data import check_pictures
from vlm.training import own_part, warm_up
from vlm.tuning_config import TuningConfig, validate_tuning

EXTREMES = ("ratio_min", "ratio_max")
PATIENCE = 3  # epochs in a row before something is called stuck
OFTEN_CLIPPED = 0.5
FAR = 1.0  # nats a token
AnswersLoss = Callable[[float, Tensor], Loss]
"""(tokens an answer of the update, numbers of some of its answers) -> their loss, and figures, each a mean over tokens."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(TuningConfig):
    """Fine-tune a vision-language model on its own answers."""

    prompts: Path
    """Questions, an object a line: {"prompt", "image"}; paths are relative to the file, other columns are not read."""
    reward: str
    """Folder of a trained reward, or module:function or file.py:function that judges answers (see vlm.answer_rewards)."""
    epochs: int = 50
    """Rounds of answering and training."""
    sample_batch_size: int = 16
    """Answers that are drawn, judged and measured at a time."""
    max_new_tokens: int = 256
    """Where an answer is cut."""
    temperature: float = 1.0
    """Of the distribution that answers are drawn from; that is the one which is trained."""
    missing_end_penalty: float = 0.0
    """What an answer's last token loses where the answer was cut."""
    inner_epochs: int = 1
    """Passes over an epoch's answers."""
    clip_range: float = 0.2
    """Ratios of a token's probabilities count up to this far from 1."""
    learning_rate: float = 1e-4
    """Of AdamW, after a warm-up constant; all weights take a tenth to a hundredth of a LoRA's."""


class Rollout(NamedTuple):
    """An epoch's answers: rows with them, their tokens, whether they ended by themselves, and what the reward says."""

    rows: list[Row]
    tokens: list[tuple[int, ...]]
    ended: list[bool]
    judgements: list[Judgement]


class Measured(NamedTuple):
    """Of each token log π and log π_ref, the entropy (nats) and the policy's state; on the CPU, 0 outside `mask`.

    Without the policy's own pass, log-probs and entropies are 0; states have no width unless they were asked for.
    """

    mask: Bool[Tensor, "b t"]
    log_probs: Float[Tensor, "b t"]
    reference: Float[Tensor, "b t"]
    entropies: Float[Tensor, "b t"]
    states: Float[Tensor, "b t d"]


def validate_rollouts(
    config: RolloutConfig,
    *,
    at_least_one: Sequence[str] = (),
    not_negative: Sequence[str] = (),
    above_zero: Sequence[str] = (),
    up_to_one: Sequence[str] = (),
) -> None:
    """UserError for a shared option, or one of those named, outside its range."""
    validate_tuning(
        config,
        at_least_one=("sample_batch_size", "max_new_tokens", "inner_epochs", *at_least_one),
        not_negative=("missing_end_penalty", *not_negative),
        above_zero=("clip_range", *above_zero),
        up_to_one=up_to_one,
    )
    check(config, "temperature", lambda value: value > 0, "above 0: a policy that does not vary cannot learn")


def prompts_that_fit(policy: VisionLanguagePolicy, prompts: Sequence[Row], config: RolloutConfig) -> list[Row]:
    """The prompts that leave room for an answer. UserError where one does not, unless such are left out, or where none does,
    and for a picture that cannot be read."""
    check_pictures(prompts)
    limit = policy.reader.max_length - config.max_new_tokens
    lengths = policy.reader.lengths(prompts)
    kept = [row for row, length in zip(prompts, lengths, strict=True) if length <= limit]
    if not kept or (len(kept) < len(prompts) and config.too_long == "refuse"):
        raise UserError(
            f"{len(prompts) - len(kept)} of {len(prompts)} prompts have no room for --max-new-tokens {config.max_new_tokens} in "
            f"the {policy.reader.max_length} tokens that are read (the longest has {max(lengths)}, its picture included): lower "
            "--max-new-tokens, or leave them out with --too-long drop"
        )
    return kept


def prompts_of(prompts: Sequence[Row], epoch: int, count: int, seed: int) -> list[Row]:
    """An epoch's `count` prompts. Over the epochs each comes once, in some order, before any comes again, and so on."""
    chosen: list[Row] = []
    while len(chosen) < count:
        passes, place = divmod(epoch * count + len(chosen), len(prompts))
        order = torch.randperm(len(prompts), generator=seeded(seed, passes))[place : place + count - len(chosen)]
        chosen += [prompts[i] for i in order.tolist()]
    return chosen


def answer(
    policy: VisionLanguagePolicy, prompts: Sequence[Row], reward: AnswerReward, config: RolloutConfig, epoch: int
) -> Rollout:
    """An answer a prompt, and what the reward says of it; each process gives some of the batches, and gets all.

    UserError where the reward does not judge as it should.
    """
    starts, parts = range(0, len(prompts), config.sample_batch_size), {}
    with tqdm(total=len(prompts), desc="answer", leave=False, unit="answer", disable=not is_main_process()) as bar:
        for first in starts[distributed.rank() :: distributed.size()]:
            asked = prompts[first : first + config.sample_batch_size]
            said = policy.generate(
                asked, seed=seeded(config.seed, epoch, first).initial_seed(), max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
            )  # fmt: skip
            rows = [row._replace(answer=text) for row, text in zip(asked, said.texts, strict=True)]
            parts[first] = Rollout(rows, said.tokens, said.ended, judged(reward, rows))
            bar.update(len(asked) * distributed.size())
    everyone = {first: part for own in distributed.gather_objects(parts) for first, part in own.items()}
    columns = zip(*(everyone[first] for first in starts), strict=True)
    return Rollout(*(list(chain.from_iterable(column)) for column in columns))


@torch.no_grad()
def measure(
    policy: VisionLanguagePolicy, rollout: Rollout, config: RolloutConfig, *, own: bool = True, states: bool = False
) -> Measured:
    """How likely each token is to the policy (unless not `own`) and to the start; each process measures some of the batches."""
    lengths = torch.tensor([len(tokens) for tokens in rollout.tokens])
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    log_probs, reference, entropies = torch.zeros(3, *mask.shape)
    kept = torch.zeros(*mask.shape, policy.width if states else 0, dtype=policy.network.dtype)
    with tqdm(total=len(lengths), desc="measure", leave=False, unit="answer", disable=not is_main_process()) as bar:
        batches = alike(rollout, torch.arange(len(lengths))).split(config.sample_batch_size)
        for places in batches[distributed.rank() :: distributed.size()]:
            batch, width = encoded(policy, rollout, places), int(lengths[places].max())
            if own:
                scored = policy.score(batch, temperature=config.temperature, entropy=True)
                log_probs[places, :width] = scored.log_probs.cpu()
                entropies[places, :width] = scored.entropies.cpu()
                if states:
                    kept[places, :width] = scored.states.cpu()
            with policy.reference():
                reference[places, :width] = policy.log_probs(batch, temperature=config.temperature).cpu()
            bar.update(len(places) * distributed.size())
    # each row was measured by one process, and is 0 at the others
    log_probs, reference, entropies, kept = map(distributed.total, (log_probs, reference, entropies, kept))
    return Measured(mask, log_probs, reference, entropies, kept)


def alike(rollout: Rollout, places: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Some of the answers in an order in which those that cost little together are together: of one prompt, of like length."""
    rows = places.tolist()
    numbers = repeated([(rollout.rows[i].prompt, rollout.rows[i].image) for i in rows])
    longest: dict[int, int] = {}
    for i, number in zip(rows, numbers, strict=True):
        longest[number] = max(longest.get(number, 0), len(rollout.tokens[i]))
    keys = [(-longest[n], n, -len(rollout.tokens[i])) for i, n in zip(rows, numbers, strict=True)]
    return places[sorted(range(len(rows)), key=keys.__getitem__)]


def encoded(policy: VisionLanguagePolicy, rollout: Rollout, places: Int[Tensor, " n"]) -> Any:
    """Some of the answers as a batch (`vlm.encoding.Encoded`)."""
    rows = places.tolist()
    return policy.encode([rollout.rows[i] for i in rows], [rollout.tokens[i] for i in rows], share=True)


def answer_kl(log_probs: Float[Tensor, "b t"], reference: Float[Tensor, "b t"]) -> float:
    """KL of an answer to the start (nats): the mean of Σ_t log π − log π_ref over answers that π gave; can be negative."""
    return float(kl_k1(log_probs, reference).sum(dim=1).mean())


def answer_kl_now(policy: VisionLanguagePolicy, rollout: Rollout, old: Measured, config: RolloutConfig) -> float:
    """`answer_kl` of the policy after updates, on answers that it gave before them: each token weighted π_now/π_old."""
    now = measure(policy, rollout, config).log_probs
    return float(((now - old.log_probs).exp() * kl_k1(now, old.reference)).sum(dim=1).mean())


def totals(rollout: Rollout, config: RolloutConfig) -> Float[Tensor, " b"]:
    """What each answer is worth, less the penalty where it was cut; NaN where the reward abstains."""
    return torch.tensor([
        judgement.total - config.missing_end_penalty * (not ended)
        for judgement, ended in zip(rollout.judgements, rollout.ended, strict=True)
    ])  # fmt: skip


def check_numbers(run: TrainingRun[Any, Any], rollout: Rollout, epoch: int) -> None:
    """UserError where a reward is infinite, or most are NaN; a few NaN are abstentions."""
    worth = [judgement.total for judgement in rollout.judgements]
    missing, infinite = sum(map(math.isnan, worth)), sum(map(math.isinf, worth))
    if infinite or 2 * missing > len(worth):
        what = f"the reward ({missing} of {len(worth)} are NaN, {infinite} infinite)"
        raise run.not_a_number(
            what, epoch, "check what the reward says to answers such as those of mmrlhf vlm generate"
        )


def rollout_figures(rollout: Rollout) -> dict[str, float | int]:
    """Mean and spread of the rewards that are numbers (penalties aside), how many are not; length and share that ended."""
    worth = torch.tensor([judgement.total for judgement in rollout.judgements], dtype=torch.float64)
    rated, count = worth[worth.isfinite()], len(worth)
    return {
        "samples": count,
        "reward_mean": float(rated.mean()),
        "reward_std": float(rated.std(correction=0)),
        "abstained": count - len(rated),
        "length_mean": sum(map(len, rollout.tokens)) / count,
        "ended": sum(rollout.ended) / count,
    }


def train_on_answers(
    run: TrainingRun[Any, Any], rollout: Rollout, rows: Int[Tensor, " n"], loss_of: AnswersLoss, epoch: int
) -> dict[str, float]:
    """Passes over some of an epoch's answers, in an order of their own; the figures are means over tokens.

    Every token of an update counts alike, however many answers go through the model at once.
    """
    config, lengths = run.config, torch.tensor([len(tokens) for tokens in rollout.tokens])
    generator, seen, norms = seeded(config.seed, epoch, 1), Figures(), []
    updates = updates_of(config, len(rows))
    number = epoch * config.inner_epochs * updates_of(config, len(rollout.rows))
    whole = config.inner_epochs * len(rows)
    with tqdm(total=whole, desc="train", leave=False, unit="answer", disable=not is_main_process()) as bar:
        for _ in range(config.inner_epochs):
            for places in rows[torch.randperm(len(rows), generator=generator)].tensor_split(updates):
                warm_up(run, number)
                tokens = float(lengths[places].float().mean())
                places = alike(rollout, places)
                whole_loss = partial(token_weighted, loss_of, lengths, tokens)
                run.learn(own_part(places), whole_loss, len(places), seen, bar)
                norms.append(run.update(epoch))
                number += 1
    figures = seen.of_epoch(norms)
    tokens = figures.pop("tokens")
    every = (*EXTREMES, "grad_norm", "updates")
    return {name: value if name in every else value / tokens for name, value in figures.items()}


def updates_of(config: RolloutConfig, answers: int) -> int:
    """How many updates of about equal size a pass makes."""
    return -(-answers // config.train_batch_size)


def token_weighted(
    loss_of: AnswersLoss, lengths: Int[Tensor, " b"], tokens_per_answer: float, places: Int[Tensor, " n"]
) -> Loss:
    """A mean over the tokens of some answers such that each token of the update counts alike; figures a token, times tokens."""
    loss, figures = loss_of(tokens_per_answer, places)
    tokens = float(lengths[places].float().mean())
    weighted = {name: value if name in EXTREMES else value * tokens for name, value in figures.items()}
    return loss * tokens / tokens_per_answer, weighted | {"tokens": tokens}


def diagnose(metrics: Sequence[dict[str, Any]], config: RolloutConfig) -> dict[str, str]:
    """Why a run does not learn, as {name: a sentence that says what to change}; empty where nothing shows."""
    found, last, recent = {}, metrics[-1], metrics[-PATIENCE:]
    stuck = len(recent) == PATIENCE and last["updates"] > 1  # in the first update all ratios are 1
    if last["reward_std"] <= SMALL_SPREAD * max(1.0, abs(last["reward_mean"])):
        found["flat reward"] = (
            f"all answers got nearly the same reward ({last['reward_mean']:.4g} ± {last['reward_std']:.1g}), so there is nothing "
            "to learn from: check the reward on a good and a bad answer, or raise --temperature"
        )
    if stuck and all(line["clip_fraction"] == 0 for line in recent):
        found["no step"] = (
            f"no ratio left the clip range {config.clip_range:g} in {PATIENCE} epochs, so the policy hardly moves: raise "
            "--learning-rate or --inner-epochs"
        )
    if stuck and all(line["clip_fraction"] > OFTEN_CLIPPED for line in recent):
        found["always clipped"] = (
            f"over {OFTEN_CLIPPED:.0%} of the ratios were outside the clip range {config.clip_range:g} in {PATIENCE} epochs, so "
            "most tokens are ignored: lower --learning-rate or --inner-epochs"
        )
    if last["ended"] == 0:
        found["all answers cut"] = (
            f"every answer was cut at --max-new-tokens {config.max_new_tokens}, so the reward judges pieces: raise it, or teach "
            "the model to end (mmrlhf vlm sft, --missing-end-penalty)"
        )
    if last["kl"] > FAR * last["length_mean"]:
        found["far from the start"] = (
            f"an answer's KL to the start is {last['kl']:.3g} nats, over {FAR:g} a token, so the policy is leaving the language "
            "that it knew: hold it more strongly (--beta or --kl-weight), give a --kl-budget, or lower --learning-rate"
        )
    if len(recent) == PATIENCE and all(line.get("zero_spread_groups", 0.0) > 0.5 for line in recent):
        found["flat groups"] = (
            f"in {last['zero_spread_groups']:.0%} of the groups all answers to a prompt got the same reward, so these teach "
            "nothing: raise --samples-per-prompt or --temperature, or use a finer reward"
        )
    return found
