"""The judgements that a reward is trained on: a new round, a share of the earlier ones, and how much each counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from mmrlhf import distributed
from mmrlhf.annotators import annotator_weights
from mmrlhf.answers import AnswerPair, read_answer_pairs
from mmrlhf.data import Pair
from mmrlhf.datasets.judgements import Judgement
from mmrlhf.errors import UserError
from mmrlhf.outcomes import Outcome, Ranking, Rating, read_outcomes, strict_pairs
from mmrlhf.points import PointedImage
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.segments import SegmentedItem

OnFault = Literal["refuse", "skip"]
T = TypeVar("T", bound=Judgement)


@dataclass(frozen=True)
class Judgements(Generic[T]):
    """New judgements, those of earlier rounds that are replayed, all earlier ones, and how much each annotator's count."""

    new: list[T]
    replayed: list[T]
    old: list[T]
    reliability: dict[str, float]

    @property
    def everything(self) -> list[T]:
        """What is trained on."""
        return [*self.new, *self.replayed]


def gather(
    data: Path,
    replay: Path | None,
    replay_share: float,
    annotators: Literal["ignore", "weigh"],
    on_fault: OnFault,
    seed: int,
) -> Judgements[Outcome]:
    """`gather_by` of judgements on images."""
    return gather_by(partial(read_judgements, on_fault=on_fault), data, replay, replay_share, annotators, seed)


def gather_by(
    read: Callable[[Path], list[T]],
    data: Path,
    replay: Path | None,
    replay_share: float,
    annotators: Literal["ignore", "weigh"],
    seed: int,
) -> Judgements[T]:
    """Read the new judgements, and draw so many of the earlier ones that they are at most `replay_share` of all.

    What is in both files is no news. UserError where nothing else is.
    """
    new = read(data)
    old = [] if replay is None else read(replay)
    known = set(old)
    if not (fresh := [judgement for judgement in new if judgement not in known]):
        raise UserError(
            f"all {len(new)} judgements of {data} are in {replay}, too: collect new ones, or leave out --replay"
        )
    new = fresh
    count = min(len(old), round(len(new) * replay_share / (1 - replay_share)))
    chosen = np.random.default_rng(seed).permutation(len(old))[:count]
    replayed = [old[i] for i in sorted(chosen.tolist())]
    return Judgements(new, replayed, old, reliabilities([*new, *replayed]) if annotators == "weigh" else {})


def read_judgements(path: Path, on_fault: OnFault) -> list[Outcome]:
    """The judgements on images of a file; with `skip`, those without a fault (images are decoded to see), the others counted."""
    if on_fault == "refuse":
        return read_outcomes(path)
    return [judgement for judgement in without_faults(path, "outcomes") if not isinstance(judgement, AnswerPair)]


def read_answers(path: Path, on_fault: OnFault) -> list[AnswerPair]:
    """The same of comparisons of answers."""
    if on_fault == "refuse":
        return read_answer_pairs(path)
    return [judgement for judgement in without_faults(path, "answers") if isinstance(judgement, AnswerPair)]


def without_faults(path: Path, format_name: Literal["outcomes", "answers"]) -> list[Judgement]:
    """What can be used; says how much cannot. UserError where nothing can."""
    from mmrlhf.datasets.checked import checked
    from mmrlhf.datasets.rows import Fault, Row

    rows = list(checked(format_name, path, None))
    faults = [row for row in rows if isinstance(row, Fault)]
    said = [row.judgement for row in rows if isinstance(row, Row)]
    found = [each for each in said if not isinstance(each, SegmentedItem | PointedImage)]
    if faults:
        distributed.say(
            f"note: {len(faults)} rows of {path} are left out, the first is {faults[0].where}: {faults[0].problem}"
        )
    if not found:
        raise UserError(f"no row of {path} can be used: see `mmrlhf data validate`")
    return found


def refuse_monotony(judgements: Sequence[Judgement], path: Path) -> None:
    """UserError where nothing is put before anything; a note where that is so by some criteria only.

    That the first is always the better one is fine: no reward sees sides.
    """
    own: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        own.setdefault(judgement.criterion, []).append(judgement)
    flat = [criterion for criterion in own if not tells_apart(own[criterion])]
    if len(flat) == len(own):
        raise UserError(
            f"all {len(judgements)} judgements of {path} are ties or ratings of one level, from which nothing is learnt: give "
            "pairs of which one is better, rankings, or ratings that differ"
        )
    for criterion in flat:
        name = f"by '{criterion}'" if criterion else "without a criterion"
        distributed.say(
            f"note: all {len(own[criterion])} judgements {name} are ties or ratings of one level: nothing is learnt"
        )


def tells_apart(judgements: Sequence[Judgement]) -> bool:
    """Whether any is no tie, or ratings differ."""
    levels = {judgement.rating for judgement in judgements if isinstance(judgement, Rating)}
    compared = [judgement for judgement in judgements if not isinstance(judgement, Rating)]
    return len(levels) > 1 or any(isinstance(j, Ranking) or j.label_0 != 0.5 for j in compared)


def reliabilities(outcomes: Sequence[Judgement]) -> dict[str, float]:
    """The reliability of each annotator of a pair, {} where nothing can be told; says so."""
    _, found = annotator_weights([outcome for outcome in outcomes if isinstance(outcome, Pair | AnswerPair)])
    if not found:
        distributed.say("note: no pair was judged by two named annotators, so that all count alike")
    elif max(found.values()) == 0:
        raise UserError(
            "no annotator agrees with another beyond chance: train with --annotators ignore, or mend the labels"
        )
    else:
        shown = ", ".join(f"{name or '(unnamed)'} {r:.2f}" for name, r in found.items())
        distributed.say(f"reliability of annotators: {shown}")
    return found


def pairs_only(outcomes: Sequence[Outcome]) -> list[Pair]:
    """Pairs, and rankings as their strict pairs. UserError for ratings and several criteria."""
    pairs = []
    for outcome in outcomes:
        if isinstance(outcome, Rating) or outcome.criterion:
            raise UserError(
                "ratings, vetoes and criteria got --train last, lora or full, allowed is head: each needs a head of its own"
            )
        pairs += strict_pairs(outcome) if isinstance(outcome, Ranking) else [outcome]
    return pairs


def forgetting(start: CLIPReward | None, reward: CLIPReward, old: Sequence[Outcome]) -> dict[str, Any]:
    """Agreement with the earlier rounds' pairs before (with a `start`) and after, as a line of metrics."""
    from mmrlhf.rewards.evaluate import evaluate_reward

    pairs = [
        pair for o in old for pair in (strict_pairs(o) if isinstance(o, Ranking) else [o]) if isinstance(pair, Pair)
    ]
    pairs = [pair for pair in pairs if pair.criterion == reward.criterion and pair.has_label]
    line: dict[str, Any] = {"earlier_pairs": len(pairs)}
    for name, scorer in (("agreement_before", start), ("agreement_after", reward)):
        if pairs and scorer is not None:
            line[f"earlier_{name}"] = evaluate_reward(scorer, pairs)["agreement"]
    return line
