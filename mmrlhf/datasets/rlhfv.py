"""RLHF-V (Yu et al. 2023): an image, a question, an answer with hallucinations, and the same answer corrected by a person.

Parquet, or JSON of the older layout: `image` (bytes, or a path), and `text`, an object or its JSON, with question, chosen (the
correction) and rejected. RLAIF-V has the three as columns of their own. What was corrected, `mmrlhf.datasets.corrections` finds.
"""

import json
from pathlib import Path
from typing import Any

from mmrlhf.answers import AnswerPair
from mmrlhf.datasets.records import records
from mmrlhf.datasets.rows import BadRow, Row, Rows, differing, picture, rows_of, text

TEXTS = ("question", "chosen", "rejected")


def read(source: Path, images: Path | None) -> Rows:
    """The pairs of a file, or of every parquet file below a folder, the correction first; paths are relative to `images`."""
    folder = images or (source if source.is_dir() else source.parent)
    found = records(source, (), ("text", *TEXTS, "image", "image_path"))
    return rows_of(found, lambda where, record: [comparison(where, record, folder)])


def comparison(where: str, record: dict[str, Any], folder: Path) -> Row:
    """One row, checked."""
    texts = texts_of(record)
    question, chosen, rejected = (text(texts, name) for name in TEXTS)
    held_there = isinstance(record.get("image"), bytes | dict) or not record.get("image_path")
    name = "image" if held_there else "image_path"  # in the older layout `image` may name a part of the data set
    image, held = picture(record.get(name), name, folder)
    return Row(where, AnswerPair(question, *differing((chosen, rejected)), 1.0, image), held)


def texts_of(record: dict[str, Any]) -> dict[str, Any]:
    """The object with question, chosen and rejected."""
    value = record.get("text")
    if value is None:
        return record
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadRow(f"text is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadRow(f"text got {value!r:.80}, allowed is an object with {', '.join(TEXTS)}")
    return value
