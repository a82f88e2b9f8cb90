"""Anthropic's HH (Bai et al. 2022): JSON lines of {"chosen", "rejected"}, two dialogues that differ in the last answer."""

from pathlib import Path
from typing import Any

from mmrlhf.answers import AnswerPair
from mmrlhf.datasets.dialogues import split
from mmrlhf.datasets.records import records
from mmrlhf.datasets.rows import BadRow, Row, Rows, differing, rows_of, text


def read(source: Path, images: Path | None) -> Rows:
    """The pairs of a file, .jsonl or .jsonl.gz, the chosen answer first."""
    return rows_of(records(source, ("chosen", "rejected")), lambda where, record: [Row(where, comparison(record))])


def comparison(record: dict[str, Any]) -> AnswerPair:
    """What the dialogues share is the prompt, up to and with the last "\\n\\nAssistant:"; texts are kept letter by letter."""
    (prompt, chosen), (other, rejected) = (split(text(record, name)) for name in ("chosen", "rejected"))
    if prompt != other:
        raise BadRow("has dialogues that differ before the last answer, so that these are answers to different prompts")
    return AnswerPair(prompt, *differing((chosen, rejected)), 1.0)
