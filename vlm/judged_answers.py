"""Answers that somebody judged: a number for the whole, or marks on its parts."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmrlhf.answers import answer_of
from mmrlhf.data import image_of, prompt_of, read_rows
from mmrlhf.errors import UserError
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.segments import SegmentedItem, tags_to_values, with_rest
from vlm.answer_rewards import Judgement, SpanReward
from vlm.preference_data import answers_of, first_row

COLUMNS = ("prompt", "answer", "reward")


class Judged(NamedTuple):
    """An answer, and what was said of it."""

    row: Row
    judgement: Judgement

    @property
    def unit(self) -> str:
        """What is independent of everything else: the prompt about its image."""
        return f"{self.row.prompt}\n{self.row.image or ''}"


def read_judged(path: Path, *, unmarked_correct: bool = False) -> list[Judged]:
    """Lines {"prompt", "image", "answer", "reward"}, or a SEGMENTS.jsonl of answers.

    A part that is marked is worth its score, or 1 where it is correct, -1 where it misleads, 0 where it is irrelevant; what
    nobody marked 0, or, with `unmarked_correct`, 1 a stretch. UserError for a bad row.
    """
    if "segments" in first_row(path, COLUMNS):
        return [judged_of_item(with_rest(item) if unmarked_correct else item) for item in answers_of(path)]
    return list(read_rows(path, COLUMNS, ("image",), judged_of_row))


def judged_of_item(item: SegmentedItem) -> Judged:
    """The marks of an answer as rewards of its parts."""
    values = tags_to_values(item.segments)
    spans = [SpanReward(s.start, s.end, value) for s, value in zip(item.segments, values, strict=True)]
    return Judged(Row(item.prompt, item.answer, item.image), Judgement(tuple(sorted(spans))))


def judged_of_row(row: dict[str, Any], folder: Path, where: str) -> Judged:
    """A checked row."""
    reward = row["reward"]
    largest = sys.float_info.max  # JSON's whole numbers know no bound
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not -largest <= reward <= largest:
        raise UserError(f"{where}: reward got {reward!r:.60}, allowed is a finite number")
    image = image_of(row, "image", folder, where) if row.get("image") is not None else None
    return Judged(Row(prompt_of(row, where), answer_of(row, "answer", where), image), Judgement((), float(reward)))


def told_judged(answers: Sequence[Judged]) -> list[str]:
    """What was said of each, as lines, to tell one data set from another."""
    return [repr((*answer.judgement.spans, answer.judgement.whole)) for answer in answers]
