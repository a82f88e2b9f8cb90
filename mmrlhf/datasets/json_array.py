"""A large JSON array, element by element."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ijson

from mmrlhf.errors import UserError


def objects(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) for each element of a JSON array, without reading the file whole. UserError if it is none."""
    number = 0
    try:
        with open(file, "rb") as stream:
            for number, row in enumerate(ijson.items(stream, "item", use_float=True), start=1):
                if not isinstance(row, dict):
                    raise UserError(f"{file} row {number} is a {type(row).__name__}, allowed is an object")
                yield f"{file} row {number}", row
    except ijson.JSONError as error:
        raise UserError(f"{file} is not a JSON array (after row {number}: {error}): restore the file") from error
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror}): give a JSON file") from error
    if not number:
        raise UserError(f"{file} holds no row: give a JSON array of objects")
