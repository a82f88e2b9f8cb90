"""What a model says of tiny-llava's scenes, of which everything is known: objects by CHAIR, and sentences that are false."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.errors import UserError
from mmrlhf.tiny.scene_files import read_scene_ids
from mmrlhf.tiny.scene_text import SENTENCE, Marker, mentioned
from mmrlhf.tiny.scenes import Scene
from vlm.benchmarks import chair
from vlm.benchmarks.answers import check_ids, gaps_noted, read_answers
from vlm.benchmarks.pooled import Columns, Row, percent, pooled, ratio, resampled_sums


def score(answers: Path, data: Path, *, partial: bool = False, seed: int = 0) -> dict[str, Any]:
    """The figures of a file of {"id", "response"} on a scenes.jsonl, or the folder with it."""
    file = data / "scenes.jsonl" if data.is_dir() else data
    if not file.is_file():
        raise UserError(f"no file {file}: give the scenes.jsonl that mmrlhf vlm scenes wrote, or its folder")
    scenes = read_scene_ids(file)
    given = read_answers(answers)
    missing = check_ids(given, scenes, partial=partial)
    found = measured([answer.text for answer in given], [scenes[answer.id] for answer in given], seed)
    return {"n": len(given), "missing": missing} | found | {"notes": gaps_noted(given, missing, len(scenes))}


def measured(texts: Sequence[str], scenes: Sequence[Scene], seed: int = 0) -> dict[str, Any]:
    """CHAIR's figures, and `false_sentences`: percent of sentences in which anything is false; with intervals over answers."""
    return pooled([counts(text, scene) for text, scene in zip(texts, scenes, strict=True)], figures, seed=seed)


def counts(text: str, scene: Scene) -> Row:
    """One answer as counts."""
    spans = [part.span() for part in SENTENCE.finditer(text) if part[0].strip()]
    wrong = [label for label in Marker(scene).mark(text, "") if label.tag == "misleading"]
    false = sum(any(start <= label.start < end for label in wrong) for start, end in spans)
    return chair.counts(mentioned(text), scene.kinds, len(text.split())) | {
        "sentences": len(spans), "false_sentences": false,
    }  # fmt: skip


def changes(before: Sequence[Row], after: Sequence[Row], seed: int = 0) -> dict[str, list[float]]:
    """[value, low, high] of the change between answers about the same scenes: CHAIR_i in percent of what it was, coverage in
    points; 95 % percentile bootstrap over scenes, which are paired."""
    columns = ("false", "mentions", "covered", "there")
    table = np.array(
        [[row[name] for row in pair for name in columns] for pair in zip(before, after, strict=True)], float
    )
    sums = np.concatenate([table.sum(axis=0, keepdims=True), resampled_sums(table, seed)])
    found = {}
    for name, place in (("chair_i", 0), ("coverage", 2)):
        old, new = (ratio(sums[:, i + place], sums[:, i + place + 1]) for i in (0, 4))
        moved = 100 * (ratio(new, old) - 1 if name == "chair_i" else new - old)
        found[name] = [float(value) for value in (moved[0], *np.nanquantile(moved[1:], [0.025, 0.975]))]
    return found


def figures(sums: Columns) -> dict[str, np.ndarray]:
    """The figures from sums of `counts`."""
    found = chair.figures(sums)
    found.pop("chair_s_naming")
    return found | {"false_sentences": percent(sums["false_sentences"], sums["sentences"])}
