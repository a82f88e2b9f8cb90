"""What a reward says of an answer: a number for each of its parts, and so for the whole."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from mmrlhf.errors import UserError
from mmrlhf.rewards.language.inputs import Row


class SpanReward(NamedTuple):
    """The reward of the characters [start, end) of an answer."""

    start: int
    end: int
    value: float


class Judgement(NamedTuple):
    """The rewards of an answer's parts, in order and none over another, and of the whole beside them; NaN abstains."""

    spans: tuple[SpanReward, ...]
    whole: float = 0.0

    @property
    def total(self) -> float:
        """What the answer is worth: the sum."""
        return math.fsum([self.whole, *(span.value for span in self.spans)])


@runtime_checkable
class AnswerReward(Protocol):
    """Judges each row's answer to its prompt, about its image; higher is better; row-independent."""

    def __call__(self, rows: Sequence[Row]) -> list[Judgement]: ...


def judged(reward: AnswerReward, rows: Sequence[Row]) -> list[Judgement]:
    """What a reward says of some rows, checked. UserError where it fails, too: it may be anybody's function."""
    from mmrlhf.rewards.rules.python_function import described

    try:
        judgements = reward(rows)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"the reward failed with {described(error)}: mend it") from error
    listed = isinstance(judgements, list | tuple)
    wrong = [each for each in judgements if not isinstance(each, Judgement)] if listed else [judgements]
    if wrong:
        raise UserError(
            f"the reward gave a {type(wrong[0]).__name__}{' for an answer' if listed else ''}, allowed is a list of "
            "vlm.answer_rewards.Judgement, one an answer: a number for the whole is Judgement((), number)"
        )
    check_judgements(judgements, rows)
    return list(judgements)


def check_judgements(judgements: Sequence[Judgement], rows: Sequence[Row]) -> None:
    """UserError where a reward did not give one judgement a row, or one outside the answer or with an infinite value."""
    if len(judgements) != len(rows):
        raise UserError(
            f"the reward gave {len(judgements)} judgements for {len(rows)} answers: it must give one an answer"
        )
    for judgement, row in zip(judgements, rows, strict=True):
        reached = 0
        for start, end, value in judgement.spans:
            if not reached <= start < end <= len(row.answer or ""):
                raise UserError(
                    f"the reward judged the characters {start} to {end} of an answer of {len(row.answer or '')}, allowed are "
                    "spans within it, in order and none over another"
                )
            if math.isinf(value):
                raise UserError(
                    f"the reward gave {value} for {row.answer!r:.60}, allowed are finite numbers, or NaN to abstain"
                )
            reached = end


def named_reward(name: str) -> AnswerReward:
    """The reward that `module:function` or `file.py:function` names: (rows) -> judgements. UserError where there is none.

    "python:" before it, as other rewards have it, may be there.
    """
    from mmrlhf.rewards.rules.python_function import PREFIX, absolute, load_function

    try:
        return load_function(absolute(name.removeprefix(PREFIX)))
    except UserError as error:
        raise UserError(f"--reward got '{name}': {error}") from error
