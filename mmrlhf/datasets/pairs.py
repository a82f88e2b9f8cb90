"""PAIRS.jsonl, this project's own file of comparisons, row by row with its faults; `mmrlhf.data` holds its rules."""

from collections.abc import Sequence
from pathlib import Path

from mmrlhf.data import OPTIONAL_PAIR_COLUMNS, PAIR_COLUMNS, Pair, check_columns, pair_of
from mmrlhf.data import write_pairs as write
from mmrlhf.datasets.json_lines import objects
from mmrlhf.datasets.judgements import KINDS, Annotation
from mmrlhf.datasets.rows import BadRow, Row, Rows, rows_of
from mmrlhf.outcomes import Ranking, strict_pairs

__all__ = ["read", "suited", "write"]


def read(source: Path, images: Path | None) -> Rows:
    """The pairs of a PAIRS.jsonl; its paths are relative to `images`, by default the file's folder."""

    def row(where: str, record: dict) -> list[Row]:
        check_columns(record, where, PAIR_COLUMNS, OPTIONAL_PAIR_COLUMNS)
        return [Row(where, pair_of(record, images or source.parent, where))]

    return rows_of(objects(source), row)


def suited(judgement: Annotation) -> Sequence[Pair]:
    """A pair as it is, a ranking as its strict pairs."""
    if isinstance(judgement, Pair):
        return [judgement]
    if isinstance(judgement, Ranking):
        return strict_pairs(judgement)
    raise BadRow(f"is of {KINDS[type(judgement)]}, which are no pair of images")
