"""Which spans of an answer somebody corrected: its words against those of the corrected answer (RLHF-V, Yu et al. 2023)."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from mmrlhf.answers import AnswerPair
from mmrlhf.segments import SegmentedItem, segments_row
from mmrlhf.types import SegmentLabel

# a word, or a sign, with the space before it, so that the tokens of a text are the text
TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])|\s+\Z")


def corrections(answer: str, corrected: str) -> list[SegmentLabel]:
    """The spans of `answer` to replace by their `correction` to make it `corrected`, in order, none over another.

    Positions count characters (code points). A deletion has the correction "". A pure insertion marks the word before it, or
    at the beginning the word after it, and its correction holds that word too: no span is empty.
    """
    old, new = TOKEN.findall(answer), TOKEN.findall(corrected)
    starts = [0]
    for token in old:
        starts.append(starts[-1] + len(token))
    return [
        SegmentLabel(answer, starts[i_0], starts[i_1], "misleading", "".join(new[j_0:j_1]))
        for i_0, i_1, j_0, j_1 in changes(old, new)
    ]


def changes(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int, int, int]]:
    """(first, end) in `old` and (first, end) in `new` of each difference; that in `old` is never empty."""
    found: list[tuple[int, int, int, int]] = []
    for kind, i_0, i_1, j_0, j_1 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        if i_0 == i_1:  # an insertion: take in the equal word beside it
            before = 1 if i_0 else 0
            i_0, i_1, j_0, j_1 = i_0 - before, i_1 + 1 - before, j_0 - before, j_1 + 1 - before
        if found and i_0 < found[-1][1]:  # two insertions around one word
            i_0, _, j_0, _ = found.pop()
        found.append((i_0, i_1, j_0, j_1))
    return found


def segments_line(pair: AnswerPair, file: Path) -> dict[str, Any]:
    """A correction as a line of the segment file `file`: what was wrong in the answer that lost."""
    wrong, right = (pair.answer_1, pair.answer_0) if pair.label_0 > 0.5 else (pair.answer_0, pair.answer_1)
    item = SegmentedItem("", tuple(corrections(wrong, right)), pair.prompt, wrong, image=pair.image, group=pair.group)
    return segments_row(item, file)
