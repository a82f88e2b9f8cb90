"""Two answers to one prompt, compared, about an image where there is one; a JSON object a line."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrlhf.data import (
    JUDGEMENT_COLUMNS,
    SURROGATES,
    Pair,
    carried,
    carried_of,
    image_of,
    label_of,
    margin_of,
    prompt_of,
    read_pairs,
    read_rows,
    relative,
    write_jsonl,
)
from mmrlhf.errors import UserError

ANSWER_COLUMNS = ("prompt", "answer_0", "answer_1", "label_0", "label_1")
OPTIONAL_ANSWER_COLUMNS = (*JUDGEMENT_COLUMNS, "margin", "image", "safe_0", "safe_1")


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to `prompt`; `label_0` is the weight of the first in [0, 1], 0.5 a tie.

    `prompt` is all that came before the answer, a dialogue included. `safe_0`, `safe_1` say whether somebody found the answer
    harmless, None where nobody said. The other columns are those of `mmrlhf.data.Pair`.
    """

    prompt: str
    answer_0: str
    answer_1: str
    label_0: float
    image: Path | None = None
    group: str = ""
    has_label: bool = True
    annotator: str = ""
    criterion: str = ""
    margin: float = 0.0
    safe_0: bool | None = None
    safe_1: bool | None = None

    @property
    def unit(self) -> str:
        """What is independent of everything else: the group, else the prompt."""
        return self.group or self.prompt


Comparison = Pair | AnswerPair


def sides_of(pair: Comparison) -> tuple[Any, Any]:
    """The two images' paths, or answers."""
    return (pair.answer_0, pair.answer_1) if isinstance(pair, AnswerPair) else (pair.image_0, pair.image_1)


def oriented(pair: Comparison, weight: float) -> float:
    """The `weight` of the first (its label, or a reward's verdict) as that of the side whose path or text sorts first."""
    first, second = sides_of(pair)
    return weight if first < second else 1 - weight


def read_answer_pairs(path: Path) -> list[AnswerPair]:
    """The comparisons of an ANSWERS.jsonl, in order; paths in it are relative to the file. UserError names the bad row."""
    return list(read_rows(path, ANSWER_COLUMNS, OPTIONAL_ANSWER_COLUMNS, answer_pair_of))


def read_comparisons(path: Path) -> list[Comparison]:
    """The comparisons of an ANSWERS.jsonl or a PAIRS.jsonl, whichever it is."""
    return list(read_answer_pairs(path)) if holds_answers(path) else list(read_pairs(path))


def holds_answers(path: Path) -> bool:
    """Whether the first line of a file of judgements compares two answers; False for what cannot be read."""
    try:
        with path.open(encoding="utf-8") as file:
            row = json.loads(next((line for line in file if line.strip()), ""))
    except (OSError, ValueError):
        return False
    return isinstance(row, dict) and "answer_0" in row


def write_answer_pairs(pairs: Sequence[AnswerPair], path: Path) -> None:
    """Write a file that `read_answer_pairs` reads back equal; whole or not at all."""
    write_jsonl([answer_row(pair, path) for pair in pairs], path)


def answer_row(pair: AnswerPair, file: Path) -> dict[str, Any]:
    """A comparison as a line of `file`."""
    row: dict[str, Any] = {"prompt": pair.prompt, "answer_0": pair.answer_0, "answer_1": pair.answer_1}
    row |= {"label_0": pair.label_0, "label_1": 1 - pair.label_0} | carried(pair)
    row |= {"margin": pair.margin} if pair.margin else {}
    row |= {"image": relative(pair.image, file)} if pair.image is not None else {}
    safe = {"safe_0": pair.safe_0, "safe_1": pair.safe_1}
    return row | {name: value for name, value in safe.items() if value is not None}


def answer_pair_of(row: dict[str, Any], folder: Path, where: str) -> AnswerPair:
    """A checked row as an `AnswerPair`."""
    labels = [label_of(row, name, where) for name in ("label_0", "label_1")]
    if abs(sum(labels) - 1) > 1e-6:
        raise UserError(
            f"{where}: label_0 {labels[0]:g} and label_1 {labels[1]:g} sum to {sum(labels):g}, allowed is 1"
        )
    first, second = (answer_of(row, name, where) for name in ("answer_0", "answer_1"))
    if first == second:
        raise UserError(f"{where} compares an answer with itself: give two answers, or remove the row")
    for name in ("safe_0", "safe_1"):
        if not isinstance(row.get(name), bool | None):
            raise UserError(f"{where}: {name} got {row[name]!r}, allowed is true or false")
    return AnswerPair(
        prompt_of(row, where), first, second, labels[0],
        image=image_of(row, "image", folder, where) if row.get("image") is not None else None,
        margin=margin_of(row, where), safe_0=row.get("safe_0"), safe_1=row.get("safe_1"), **carried_of(row, where),
    )  # fmt: skip


def answer_of(row: dict[str, Any], name: str, where: str) -> str:
    """A text that is not empty and can be encoded."""
    value = row[name]
    if not isinstance(value, str) or not value.strip() or SURROGATES.search(value):
        raise UserError(
            f"{where}: {name} got {value!r:.80}, allowed is a text that is not empty: mend or remove the row"
        )
    return value
