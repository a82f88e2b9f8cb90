"""What every reader of a data set yields: judgements, and the faults of the rows that hold none; and the checks they share."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmrlhf.data import SURROGATES
from mmrlhf.datasets.judgements import Annotation
from mmrlhf.errors import UserError
from mmrlhf.images import content_hash


@dataclass(frozen=True)
class Row:
    """A judgement as a data set holds it; `held` has the bytes of those of its images that are no files, by their name in it."""

    where: str
    judgement: Annotation
    held: Mapping[Path, bytes] = field(default_factory=dict)


class Fault(NamedTuple):
    """A row that cannot be used: where it is, and what is wrong with it."""

    where: str
    problem: str


class BadRow(ValueError):
    """What a reader raises inside a row; it becomes that row's `Fault`."""


Rows = Iterator[Row | Fault]
# an image of a row: its file, or a name for bytes (their content hash) and the bytes
Picture = tuple[Path, dict[Path, bytes]]


def rows_of(
    records: Iterable[tuple[str, dict[str, Any] | BadRow]], convert: Callable[[str, dict[str, Any]], Sequence[Row]]
) -> Rows:
    """Each record converted to its rows, or the fault for which it has none."""
    for where, record in records:
        try:
            if isinstance(record, BadRow):
                raise record
            yield from convert(where, record)
        except BadRow as error:
            yield Fault(where, str(error))
        except UserError as error:  # from the rules of this project's own files, which name the row themselves
            yield Fault(where, str(error).removeprefix(where).lstrip(": "))


def text(row: Mapping[str, Any], name: str) -> str:
    """A column that must be a text that is not empty."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip() or SURROGATES.search(value):
        raise BadRow(f"{name} got {value!r:.80}, allowed is a text that is not empty")
    return value


def names(row: Mapping[str, Any], name: str, least: int = 2) -> list[str]:
    """A column that must be a list of `least` or more texts, none twice."""
    value = row.get(name)
    if not isinstance(value, list) or len(value) < least or not all(isinstance(v, str) and v for v in value):
        raise BadRow(f"{name} got {value!r:.80}, allowed is a list of {least} or more file names")
    if len(set(value)) < len(value):
        raise BadRow(f"{name} names a file twice")
    return value


def numbers(row: Mapping[str, Any], name: str, count: int) -> list[float]:
    """A column that must be a list of `count` finite numbers."""
    value = row.get(name)
    if not isinstance(value, list) or len(value) != count or not all(is_number(v) for v in value):
        raise BadRow(f"{name} got {value!r:.80}, allowed is a list of {count} numbers, one an image")
    return [float(v) for v in value]


def ranks(row: Mapping[str, Any], name: str, count: int) -> list[float]:
    """A column that must be a list of `count` ranks that differ somewhere."""
    found = numbers(row, name, count)
    if len(set(found)) == 1:
        raise BadRow(f"{name} got {row[name]!r:.80}, all equal, which puts nothing before anything")
    return found


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def differing(answers: Sequence[str]) -> tuple[str, str]:
    """Two answers, neither empty nor the same."""
    first, second = answers
    if not first.strip() or not second.strip():
        raise BadRow("has an empty answer")
    if first.strip() == second.strip():
        raise BadRow("compares an answer with itself")
    return first, second


def existing(folder: Path, name: str) -> Path:
    """The image file `name` below `folder`."""
    path = folder / name
    if not path.is_file():
        raise BadRow(f"no file {path}")
    return path


def picture(value: Any, name: str, folder: Path) -> Picture:
    """A column that is an image: bytes, a path, or a struct of both as the package `datasets` writes it."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(data, bytes) and data:
        key = Path(content_hash(data))
        return key, {key: data}
    path = value.get("path") if isinstance(value, dict) else value
    if not isinstance(path, str) or not path:
        raise BadRow(f"{name} got {value!r:.80}, allowed are an image's bytes, a path, or both")
    return existing(folder, path), {}
