"""TRL's preference columns: prompt, chosen and rejected, as texts or as messages, with an image where there is one.

Without `prompt` it is what chosen and rejected begin with: their common messages; of texts all up to the last "\\n\\nAssistant:",
else up to the last space before they part (TRL cuts at the very letter, which may be inside a word).
"""

import os
import re
from pathlib import Path
from typing import Any

from mmrlhf.answers import AnswerPair
from mmrlhf.datasets.dialogues import ANSWER, joined, messages_of, split
from mmrlhf.datasets.records import records
from mmrlhf.datasets.rows import BadRow, Row, Rows, differing, is_number, picture, rows_of, text

SIDES = ("chosen", "rejected")


def read(source: Path, images: Path | None) -> Rows:
    """The pairs of a file, or of every parquet file below a folder, the chosen answer first."""
    folder = images or (source if source.is_dir() else source.parent)
    found = records(source, SIDES, ("prompt", "images", "image", "margin"))
    return rows_of(found, lambda where, record: [comparison(where, record, folder)])


def comparison(where: str, record: dict[str, Any], folder: Path) -> Row:
    """One row, checked."""
    prompt, answers = of_messages(record) if isinstance(record["chosen"], list) else of_texts(record)
    margin = record.get("margin") or 0.0
    if not is_number(margin) or margin < 0:
        raise BadRow(f"margin got {margin!r}, allowed is a number, 0 or more")
    image, held = image_of(record, folder)
    return Row(where, AnswerPair(prompt, *differing(answers), 1.0, image, margin=float(margin)), held)


def of_texts(record: dict[str, Any]) -> tuple[str, list[str]]:
    """(prompt, answers) of a row of texts."""
    answers = [text(record, name) for name in SIDES]
    if record.get("prompt") is not None:
        return text(record, "prompt"), answers
    if all(ANSWER in answer for answer in answers):
        (prompt, chosen), (other, rejected) = map(split, answers)
        if prompt != other:
            raise BadRow("has dialogues that differ before the last answer: give the prompt in a column of its own")
        return prompt, [chosen, rejected]
    prompt = re.sub(r"\s*\S*\Z", "", os.path.commonprefix(answers), count=1)
    if not prompt.strip():
        raise BadRow(
            "has no prompt, and chosen and rejected share no beginning: give the prompt in a column of its own"
        )
    return prompt, [answer.removeprefix(prompt) for answer in answers]


def of_messages(record: dict[str, Any]) -> tuple[str, list[str]]:
    """(prompt, answers) of a row of messages; a prompt that is a text stands where they have none in common."""
    prompt = messages_of(record["prompt"], "prompt") if isinstance(record.get("prompt"), list) else []
    sides = [messages_of(record[name], name) for name in SIDES]
    common = 0
    while not prompt and all(len(side) > common + 1 for side in sides) and sides[0][common] == sides[1][common]:
        common += 1
    shared, rest = prompt + sides[0][:common], [side[common:] for side in sides]
    if not shared:
        shared = [{"role": "user", "content": text(record, "prompt")}]
    for name, messages in zip(SIDES, rest, strict=True):
        if [message["role"] for message in messages] != ["assistant"]:
            raise BadRow(f"{name} has {len(messages)} messages after the prompt, allowed is one of the assistant")
    return joined(shared, [messages[0]["content"] for messages in rest])


def image_of(record: dict[str, Any], folder: Path) -> tuple[Path | None, dict[Path, bytes]]:
    """The image of a row, or None; several are a fault."""
    value, name = record.get("images"), "images"
    if value is None or value == []:
        value, name = record.get("image"), "image"
    if isinstance(value, list):
        if len(value) != 1:
            raise BadRow(f"{name} holds {len(value)} images, allowed is one")
        value = value[0]
    return picture(value, name, folder) if value is not None else (None, {})
