"""Files for the tests of benchmarks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def json_list(path: Path, rows: Sequence[Any]) -> Path:
    """A file with one JSON list."""
    path.write_text(json.dumps([*rows]))
    return path


def json_lines(path: Path, rows: Sequence[Any]) -> Path:
    """A file with a JSON value a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def responses(texts: Mapping[Any, str]) -> list[dict[str, Any]]:
    """Answers by id, as rows."""
    return [{"id": name, "response": text} for name, text in texts.items()]
