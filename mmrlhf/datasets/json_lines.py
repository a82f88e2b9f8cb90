"""JSON lines, one object a line, plain or packed with gzip or xz, never read whole."""

import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mmrlhf.datasets.rows import BadRow
from mmrlhf.errors import UserError

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}

Records = Iterator[tuple[str, dict[str, Any] | BadRow]]


def objects(file: Path) -> Records:
    """(where, object) for each line that is not blank, a `BadRow` for one that is none. UserError where there is no line."""
    found = False
    with reading(file) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                found = True
                yield f"{file} row {number}", parsed(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
    if not found:
        raise UserError(f"{file} is empty: give a file with a JSON object a line")


def parsed(line: bytes) -> dict[str, Any] | BadRow:
    """A line as an object, or what is wrong with it."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return BadRow("is not UTF-8 text")
    except (ValueError, RecursionError) as error:
        return BadRow(f"is not JSON ({error})")
    return row if isinstance(row, dict) else BadRow(f"is a {type(row).__name__}, allowed is an object")


@contextmanager
def reading(file: Path) -> Iterator[IO[bytes]]:
    """A file opened for reading, unpacked on the way; UserError for whatever goes wrong while it is read."""
    try:
        with OPENERS.get(file.suffix, open)(file, "rb") as stream:
            yield stream
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {file} ({reason}): give a data file that is whole") from error
