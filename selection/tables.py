"""What is known of each row, by column: from JSON lines, CSV or parquet."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrlhf.errors import UserError
from selection.parquet import parquet_columns

SUFFIXES = (".jsonl", ".csv", ".parquet")
IMAGE_COLUMNS = ("image", "file_name")

Columns = Mapping[str, Sequence[Any]]


def read_columns(path: Path) -> dict[str, list[Any]]:
    """Every column of a .jsonl, .csv or .parquet file, a value a row; None where a row has none. UserError names the fault.

    A CSV's column of numbers alone is read as numbers, one of true and false as such, an empty cell as missing. A
    parquet file's columns of lists, such as embeddings, are left out.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"cannot read the metadata {path}: its name ends in '{path.suffix}', allowed are {', '.join(SUFFIXES)}"
        )
    if path.suffix.lower() == ".parquet":
        columns = parquet_columns(path)
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise UserError(
                f"cannot read the metadata {path} ({reason}): give a file with a row an embedding"
            ) from error
        columns = csv_columns(text, path) if path.suffix.lower() == ".csv" else json_columns(text, path)
    if not columns or not next(iter(columns.values())):
        raise UserError(f"the metadata {path} hold no row: write one a row of the embeddings")
    return columns


def json_columns(text: str, path: Path) -> dict[str, list[Any]]:
    """Columns of one object a line; blank lines are left out."""
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path} row {number} is not JSON ({error}): write an object a line") from error
        if not isinstance(row, dict):
            raise UserError(
                f'{path} row {number} is a {type(row).__name__}, allowed is an object: write {{"column": value}}'
            )
        rows.append(row)
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(key for row in rows for key in row)}


def csv_columns(text: str, path: Path) -> dict[str, list[Any]]:
    """Columns of a table with a header."""
    try:
        header, *rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row] or [[]]
    except csv.Error as error:
        raise UserError(f"{path} is not CSV ({error}): put texts with commas in quotes") from error
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise UserError(f"{path} has the column '{twice}' twice: rename one")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise UserError(f"{path} row {number} has {len(row)} values, allowed are {len(header)}, as the header has")
    return {name: typed([row[place] for row in rows]) for place, name in enumerate(header)}


def typed(cells: list[str]) -> list[Any]:
    """Cells as whole numbers, numbers, or true and false, where all that are filled are; empty ones as None."""
    filled = [cell for cell in cells if cell.strip()]
    for convert in (int, number, truth):
        try:
            return [convert(cell) if cell.strip() else None for cell in cells] if filled else [None] * len(cells)
        except ValueError:
            continue
    return [cell if cell.strip() else None for cell in cells]


def number(cell: str) -> float:
    """A finite number, or NaN, which counts as missing."""
    value = float(cell)
    if math.isinf(value):
        raise ValueError
    return value


def truth(cell: str) -> bool:
    """true or false in any case."""
    if cell.strip().lower() not in ("true", "false"):
        raise ValueError
    return cell.strip().lower() == "true"


def check_length(columns: Columns, count: int, path: Path) -> None:
    """UserError unless there is a row of metadata a row of the embeddings."""
    found = len(next(iter(columns.values())))
    if found != count:
        raise UserError(
            f"{path} has {found} rows for {count} rows of the embeddings, allowed is one each: write them in order"
        )


def of_images(
    columns: Columns, listed: Sequence[Path], used: Sequence[Path], folder: Path, path: Path
) -> dict[str, list[Any]]:
    """The rows of the images `used`, in their order: by a column "image" or "file_name" where there is one, else by place.

    Names are relative to `folder` or to the metadata file. Without such a column there is a row an image `listed`.
    """
    name = next((name for name in IMAGE_COLUMNS if name in columns), None)
    if name is None:
        check_length(columns, len(listed), path)
        places = {image: row for row, image in enumerate(listed)}
    else:
        places = {}
        for row, value in enumerate(columns[name]):
            for start in (path.parent, folder):
                places[(start / str(value)).resolve()] = row
    result = [places.get(image if name is None else image.resolve()) for image in used]
    if None in result:
        missing = used[result.index(None)]
        raise UserError(f"{path} has no row whose {name} is {missing}: write one for each image in {folder}")
    return {key: [values[row] for row in result if row is not None] for key, values in columns.items()}
