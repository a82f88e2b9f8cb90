"""OUTCOMES.jsonl, this project's own file of judgements on images; `mmrlhf.outcomes` holds its rules."""

from collections.abc import Sequence
from pathlib import Path

from mmrlhf.answers import AnswerPair
from mmrlhf.datasets.json_lines import objects
from mmrlhf.datasets.judgements import KINDS, Annotation
from mmrlhf.datasets.rows import BadRow, Row, Rows, rows_of
from mmrlhf.outcomes import Outcome, outcome_of
from mmrlhf.outcomes import write_outcomes as write

__all__ = ["read", "suited", "write"]


def read(source: Path, images: Path | None) -> Rows:
    """The judgements of an OUTCOMES.jsonl; its paths are relative to `images`, by default the file's folder."""
    folder = images or source.parent
    return rows_of(objects(source), lambda where, record: [Row(where, outcome_of(record, folder, where))])


def suited(judgement: Annotation) -> Sequence[Outcome]:
    """Any judgement on whole images."""
    if isinstance(judgement, AnswerPair):
        raise BadRow("compares answers, not images")
    if not isinstance(judgement, Outcome):
        raise BadRow(f"is of {KINDS[type(judgement)]}, which have a file of their own")
    return [judgement]
