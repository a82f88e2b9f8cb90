"""The metrics.jsonl of fine-tuning runs, as columns of numbers."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mmrlhf.data import lines_of, parse_object
from mmrlhf.errors import UserError

METRICS = "metrics.jsonl"


def read_runs(folder: Path, keys: Sequence[str]) -> dict[str, dict[str, Float[np.ndarray, " t"]]]:
    """The numbers under `keys` in the run in `folder`, or in each run right below it, by the run's name.

    Lines that lack one are left out. UserError where there is no run, or one without any whole line.
    """
    files = [folder / METRICS] if (folder / METRICS).is_file() else sorted(folder.glob(f"*/{METRICS}"))
    if not files:
        raise UserError(f"no {METRICS} in {folder} or in a folder below it: give the --out of a fine-tuning run")
    return {file.parent.name: read_metrics(file, keys) for file in files}


def read_metrics(file: Path, keys: Sequence[str]) -> dict[str, Float[np.ndarray, " t"]]:
    """The columns `keys` of one metrics.jsonl, from the lines that have a finite number in each."""
    found: list[list[float]] = []
    seen: dict[str, None] = {}
    for where, line in lines_of(file, keys):
        row = parse_object(line, where, keys)
        seen |= {name: None for name in row}
        values = [row.get(key) for key in keys]
        numbers = [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]
        if len(numbers) == len(keys):
            found.append(numbers)
    if not found:
        raise UserError(
            f"no line of {file} has a number for each of {', '.join(keys)}: it has {', '.join(seen)}; name another key, or run "
            "with a gold reward"
        )
    return dict(zip(keys, np.array(found).T, strict=True))
