"""PAIRS.jsonl, this project's own file of comparisons, row by row with its faults; `mmrlhf.data` holds its rules."""

from pathlib import Path

from mmrlhf.data import OPTIONAL_PAIR_COLUMNS, PAIR_COLUMNS, lines_of, pair_of, parse_row
from mmrlhf.data import write_pairs as write
from mmrlhf.datasets.rows import Fault, Row, Rows
from mmrlhf.errors import UserError

__all__ = ["read", "write"]


def read(source: Path, images: Path | None) -> Rows:
    """The pairs of a PAIRS.jsonl; its paths are relative to `images`, by default the file's folder."""
    for where, line in lines_of(source, PAIR_COLUMNS):
        try:
            pair = pair_of(parse_row(line, where, PAIR_COLUMNS, OPTIONAL_PAIR_COLUMNS), images or source.parent, where)
            yield Row(where, pair.prompt, pair.image_0, pair.image_1, pair.label_0, pair.group, pair.has_label)
        except UserError as error:
            yield Fault(where, str(error).removeprefix(where).lstrip(": "))
