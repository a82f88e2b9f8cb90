"""The lines of a metrics.jsonl: read whatever state the file is in, put into the order of their steps, and their numbers."""

import functools
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apps.dashboard_files import printable

STEP_NAMES = ("epoch", "round", "iteration", "step")
MOST_PARTS = 12  # a text with more values than this is no name of a part of the run
USUAL_LINES = 20
Line = Mapping[str, Any]


@functools.lru_cache(maxsize=512)
def read_lines(file: Path, changed: int, size: int) -> tuple[tuple[Line, ...], tuple[int, ...]]:
    """(the objects, the numbers of broken lines) of this version of a file; a last line that is still being written is none."""
    try:
        text = file.read_bytes()
    except OSError:
        return (), ()
    lines, broken = [], []
    rows = text.split(b"\n")
    for number, row in enumerate(rows, start=1):
        if not row.strip():
            continue
        try:
            line = json.loads(row)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict):
            lines.append(line)
        elif number < len(rows):  # the last one has no line end yet
            broken.append(number)
    return tuple(lines), tuple(broken)


def step_name_of(lines: Sequence[Line]) -> str:
    """What the lines count."""
    return next((name for name in STEP_NAMES if any(is_number(line.get(name)) for line in lines)), "line")


def in_order(lines: Sequence[Line], step_name: str) -> dict[str, list[tuple[float, Line]]]:
    """(step, line) by the part of the run that they are of, in order.

    A line whose step is not above the one before it is of a run that was taken up again there: it replaces what came later.
    """
    labels = labels_of(lines)
    parts: dict[str, list[tuple[float, Line]]] = {}
    for number, line in enumerate(lines):
        part = " · ".join(printable(line[label]) for label in labels if isinstance(line.get(label), str))
        entries = parts.setdefault(part, [])
        given: Any = number if step_name == "line" else line.get(step_name)
        if not is_number(given) or not math.isfinite(step := as_float(given)):  # what is measured once, at the end
            entries.append((entries[-1][0] if entries else 0.0, line))
            continue
        while entries and entries[-1][0] >= step:
            entries.pop()
        entries.append((step, line))
    return parts


def labels_of(lines: Sequence[Line]) -> list[str]:
    """The columns of texts that part a run, such as the criterion that a head learns; texts that never repeat do not."""
    texts: dict[str, list[str]] = {}
    for line in lines:
        for name, value in line.items():
            if isinstance(value, str) and name != "stopped":  # why the run ended
                texts.setdefault(name, []).append(value)
    return [
        name
        for name, values in texts.items()
        if 1 < len(set(values)) <= MOST_PARTS and 2 * len(set(values)) <= len(values)
    ]


def flat(line: Line) -> Iterator[tuple[str, Any]]:
    """The values of a line, those of objects in it as name/name."""
    for name, value in line.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{inner}", each) for inner, each in value.items())
        else:
            yield name, value


def is_number(value: Any) -> bool:
    """Whether JSON has a number here, NaN and Infinity included."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_float(value: int | float) -> float:
    """A number of JSON, which may be too large for a float."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def numbers_in(value: Any) -> tuple[float, ...]:
    """The finite numbers of a list; () for anything else."""
    if not isinstance(value, list):
        return ()
    return tuple(number for each in value if is_number(each) and math.isfinite(number := as_float(each)))


def progress(parts: Mapping[str, Sequence[tuple[float, Line]]], step_name: str) -> int:
    """How many steps are done; round 0 is what was there before the first."""
    last = max((entries[-1][0] for entries in parts.values() if entries), default=-1.0)
    whole = int(last) if math.isfinite(last) else -1
    return max(whole if step_name == "round" else whole + 1, 0)


def usual_seconds(lines: Sequence[Line]) -> float | None:
    """The median of the last lines' own `seconds`."""
    times = [as_float(line["seconds"]) for line in lines[-USUAL_LINES:] if is_number(line.get("seconds"))]
    times = [seconds for seconds in times if math.isfinite(seconds)]
    return statistics.median(times) if times else None
