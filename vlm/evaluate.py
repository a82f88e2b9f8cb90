"""`mmrlhf vlm eval`: the figures of a file of answers on a hallucination benchmark, without any model."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmrlhf.data import write_text
from mmrlhf.errors import UserError
from vlm.benchmarks import amber, chair, mmhal, object_halbench, pope, scenes
from vlm.benchmarks.pooled import INTERVALS

Score = Callable[..., dict[str, Any]]
BENCHMARKS: dict[str, Score] = {
    "amber": amber.score,
    "pope": pope.score,
    "chair": chair.score,
    "object-halbench": object_halbench.score,
    "mmhal": mmhal.score,
    "scenes": scenes.score,
}
# figures of parts of the questions, by the part's name
PARTS = ("by_type", "by_subset")


@dataclass(frozen=True)
class EvalConfig:
    """Score a model's answers on a hallucination benchmark."""

    benchmark: Literal["amber", "pope", "chair", "object-halbench", "mmhal", "scenes"]
    """Whose questions were answered."""
    answers: Path
    """JSON list, or an object a line, of {"id", "response"}; for pope "question_id" and maybe "category", or in order."""
    data: Path
    """amber: its folder; pope: folder of the three question files, or one file; chair and object-halbench: JSON lines of
    {"id", "objects"} with a synonyms file beside it, or their folder; mmhal: the file of questions;
    scenes: the scenes.jsonl of `mmrlhf vlm scenes`, or its folder."""
    out: Path
    """JSON file to write."""
    partial: bool = False
    """Score a file that lacks some answers, and say how many."""
    judge: str | None = None
    """mmhal: module:function or file.py:function, which takes a question and an answer and rates from 0 to 6."""
    ratings: Path | None = None
    """mmhal: JSON file of {"id", "rating"}, or of numbers in order, instead of a judge."""
    seed: int = 0
    """Of the bootstrap."""


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Measure, print a table, write the JSON file, return what is in it."""
    if config.out.is_dir():
        raise UserError(f"--out {config.out} is a folder: give the name of a file to write")
    judging = {"judge": config.judge, "ratings": config.ratings}
    if config.benchmark != "mmhal" and any(value is not None for value in judging.values()):
        raise UserError(f"--judge and --ratings are for mmhal, --benchmark got {config.benchmark}: leave them out")
    extra = judging if config.benchmark == "mmhal" else {}
    found = BENCHMARKS[config.benchmark](config.answers, config.data, partial=config.partial, seed=config.seed, **extra)
    notes = [*found.pop("notes"), f"intervals: {INTERVALS}"]
    report = {
        "benchmark": config.benchmark,
        "answers": str(config.answers),
        "data": str(config.data),
        "seed": config.seed,
    }
    report |= found | {"notes": notes}
    write_text(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n", config.out)
    print("\n".join([*table(found), *(f"note: {note}" for note in notes)]))
    counted = f"{found['n']} answers" + (f", {found['missing']} missing" if found["missing"] else "")
    print(f"{config.benchmark} of {counted}: {config.out}")
    return report


def table(found: Mapping[str, Any]) -> list[str]:
    """A line a figure of the whole, with its interval; then a line a part."""
    lines = []
    for name, value in found.items():
        if name in PARTS:
            columns = [column for column in next(iter(value.values())) if not column.endswith("_ci95")]
            lines += ["", "".join([f"{name:<18}", *(f"{column:>20}" for column in columns)])]
            for part, figures in value.items():
                lines.append("".join([f"{part:<18}", *(f"{shown(figures[column]):>20}" for column in columns)]))
            lines.append("")
        elif not name.endswith("_ci95") and name not in ("n", "missing"):
            interval = found.get(f"{name}_ci95")
            between = f"  (95% {interval[0]:.1f} … {interval[1]:.1f})" if interval else ""
            lines.append(f"{name:<18}{shown(value):>8}{between}")
    return lines


def shown(value: float | int | None) -> str:
    """A figure, or a count, as text."""
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.1f}"
