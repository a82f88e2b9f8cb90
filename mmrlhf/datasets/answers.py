"""ANSWERS.jsonl, this project's own file of comparisons of two answers; `mmrlhf.answers` holds its rules."""

from collections.abc import Sequence
from pathlib import Path

from mmrlhf.answers import ANSWER_COLUMNS, OPTIONAL_ANSWER_COLUMNS, AnswerPair, answer_pair_of
from mmrlhf.answers import write_answer_pairs as write
from mmrlhf.data import check_columns
from mmrlhf.datasets.json_lines import objects
from mmrlhf.datasets.judgements import KINDS, Annotation
from mmrlhf.datasets.rows import BadRow, Row, Rows, rows_of

__all__ = ["read", "suited", "write"]


def read(source: Path, images: Path | None) -> Rows:
    """The comparisons of an ANSWERS.jsonl; its paths are relative to `images`, by default the file's folder."""

    def row(where: str, record: dict) -> list[Row]:
        check_columns(record, where, ANSWER_COLUMNS, OPTIONAL_ANSWER_COLUMNS)
        return [Row(where, answer_pair_of(record, images or source.parent, where))]

    return rows_of(objects(source), row)


def suited(judgement: Annotation) -> Sequence[AnswerPair]:
    """Two answers, whatever was said of them."""
    if not isinstance(judgement, AnswerPair):
        raise BadRow(f"is of {KINDS[type(judgement)]}, which compare no answers")
    return [judgement]
