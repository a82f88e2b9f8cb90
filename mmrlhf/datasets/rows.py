"""What every reader of a data set yields: comparisons, and the faults of the rows that hold none."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Row:
    """Two images compared for one prompt, as a data set holds them; an image is a file, or the bytes of one.

    `label_0` is the weight of the first in [0, 1]. Rows of one `group` come from one ranking and are not independent.
    """

    where: str
    prompt: str
    image_0: Path | bytes
    image_1: Path | bytes
    label_0: float
    group: str = ""
    has_label: bool = True


class Fault(NamedTuple):
    """A row that cannot be used: where it is, and what is wrong with it."""

    where: str
    problem: str


class BadRow(ValueError):
    """What a reader raises inside a row; it becomes that row's `Fault`."""


Rows = Iterator[Row | Fault]


def text(row: dict[str, Any], name: str) -> str:
    """A column that must be a text that is not empty."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"{name} got {value!r}, allowed is a text")
    return value


def names(row: dict[str, Any], name: str, least: int = 2) -> list[str]:
    """A column that must be a list of `least` or more texts, none twice."""
    value = row.get(name)
    if not isinstance(value, list) or len(value) < least or not all(isinstance(v, str) and v for v in value):
        raise BadRow(f"{name} got {value!r:.80}, allowed is a list of {least} or more file names")
    if len(set(value)) < len(value):
        raise BadRow(f"{name} names a file twice")
    return value


def numbers(row: dict[str, Any], name: str, count: int) -> list[float]:
    """A column that must be a list of `count` finite numbers."""
    value = row.get(name)
    if not isinstance(value, list) or len(value) != count or not all(is_number(v) for v in value):
        raise BadRow(f"{name} got {value!r:.80}, allowed is a list of {count} numbers, one an image")
    return [float(v) for v in value]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def existing(folder: Path, name: str) -> Path:
    """The image file `name` below `folder`."""
    path = folder / name
    if not path.is_file():
        raise BadRow(f"no file {path}")
    return path


def ranked_pairs(where: str, prompt: str, images: Sequence[Path], ranks: Sequence[float], group: str) -> list[Row]:
    """Every strict pair of a ranking, 1 the best rank; images of equal rank are left out, as the data sets' authors do."""
    rows = []
    for i, first in enumerate(images):
        for j in range(i + 1, len(images)):
            if ranks[i] != ranks[j]:
                rows.append(Row(where, prompt, first, images[j], float(ranks[i] < ranks[j]), group))
    return rows
