"""`mmrlhf vlm scenes` and `mmrlhf vlm mark`: pictures of which everything is known, and answers marked by the truth."""

import json
from dataclasses import dataclass
from pathlib import Path

from mmrlhf.config import check, check_seed
from mmrlhf.data import image_of, is_unused
from mmrlhf.errors import UserError
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.segments import SegmentedItem, write_segments
from mmrlhf.tiny.scene_files import write_scenes
from vlm.benchmarks.answers import read_records
from vlm.scene_truth import SceneTruth


@dataclass(frozen=True)
class ScenesConfig:
    """Draw scenes of emoji, tiny-llava's world, with their truth."""

    out: Path
    """Folder for the pictures and scenes.jsonl: a line a picture with prompt, true answer and objects."""
    count: int = 200
    """How many."""
    seed: int = 0
    """Same seed, same scenes; those of another seed are others."""


@dataclass(frozen=True)
class MarkConfig:
    """Mark answers about scenes as an annotator would who sees the truth."""

    answers: Path
    """What `mmrlhf vlm generate` wrote: lines with prompt, image and response."""
    scenes: Path
    """The scenes.jsonl of the pictures."""
    out: Path
    """File for the marked answers: SEGMENTS.jsonl, with what should stand instead."""
    limit: int | None = None
    """How many answers to mark, from the first on; None is all."""


def draw(config: ScenesConfig) -> None:
    """Write the folder. UserError where it holds something else."""
    check(config, "count", lambda value: value >= 1, "1 or more")
    check_seed(config.seed)
    if not is_unused(config.out):
        raise UserError(f"--out {config.out} already holds files: give an empty folder")
    file = write_scenes(config.out, config.count, seed=config.seed)
    print(f"{config.count} scenes are in {file}")


def mark(config: MarkConfig) -> None:
    """Write the segments of each answer, in order. UserError for an answer about a picture that is no known scene."""
    if config.limit is not None:
        check(config, "limit", lambda value: value >= 1, "1 or more, or leave it out for all")
    truth = SceneTruth(config.scenes)
    items = [marked(truth, *each) for each in read_responses(config.answers)[: config.limit]]
    write_segments(items, config.out)
    wrong = sum(any(each.tag == "misleading" for each in item.segments) for item in items)  # type: ignore[union-attr]
    print(f"{len(items)} answers, {wrong} of them with something wrong, are marked in {config.out}")


def marked(truth: SceneTruth, name: str, row: Row) -> SegmentedItem:
    """An answer with what the truth says of its parts."""
    assert row.answer is not None and (row.image is None or isinstance(row.image, Path))
    segments = tuple(truth.marker(row).mark(row.answer, name))
    return SegmentedItem(name, segments, row.prompt, row.answer, image=row.image, annotator="truth")


def read_responses(path: Path, *, keep_empty: bool = False) -> list[tuple[str, Row]]:
    """(name, answered question) of each line with prompt, image and response, empty answers left out. UserError for a bad one."""
    found: list[tuple[str, Row]] = []
    for number, (where, row) in enumerate(read_records(path, "what mmrlhf vlm generate wrote")):
        if missing := [name for name in ("prompt", "image", "response") if not isinstance(row.get(name), str)]:
            raise UserError(f"{where}: {missing[0]} got {json.dumps(row.get(missing[0]))[:60]}, allowed is a text")
        if keep_empty or row["response"].strip():
            picture = image_of(row, "image", path.parent, where)
            name = f"{row.get('id', number)}" + (f"-{row['sample']}" if "sample" in row else "")
            found.append((name, Row(row["prompt"], row["response"], picture)))
    if not found:
        raise UserError(f"{path} holds no answer: give what mmrlhf vlm generate wrote")
    return found
