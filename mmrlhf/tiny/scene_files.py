"""Scenes on disk: pictures, and a line for each with the truth, for models and rewards to be judged by."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.data import write_jsonl
from mmrlhf.errors import UserError
from mmrlhf.images import save_image
from mmrlhf.tiny.scene_text import DESCRIBE, describe
from mmrlhf.tiny.scenes import Scene, Thing, random_scene, render

FILE = "scenes.jsonl"


def write_scenes(folder: Path, count: int, *, seed: int) -> Path:
    """`count` random scenes as PNG files and FOLDER/scenes.jsonl: {"id", "image", "prompt", "answer", "objects", "scene"}.

    The answer is a true description. The same for the same seed; scenes of different seeds are unrelated.
    """
    generator = np.random.default_rng([seed, 2024])
    rows: list[dict[str, Any]] = []
    for number in range(count):
        scene = random_scene(generator)
        name = f"scene-{number:05d}.png"
        save_image(render([scene], generator)[0], folder / name)
        rows.append({
            "id": number, "image": name, "prompt": DESCRIBE, "answer": describe(scene, generator),
            "objects": sorted(scene.kinds), "scene": scene_row(scene),
        })  # fmt: skip
    write_jsonl(rows, folder / FILE)
    return folder / FILE


def read_scenes(file: Path) -> dict[Path, Scene]:
    """The scene of each picture. UserError for a line that holds none."""
    return {(file.parent / row["image"]).resolve(): scene for row, scene in scene_rows(file)}


def read_scene_ids(file: Path) -> dict[str, Scene]:
    """The scene of each id. UserError for a line that holds none."""
    return {str(row["id"]): scene for row, scene in scene_rows(file)}


def scene_rows(file: Path) -> list[tuple[dict[str, Any], Scene]]:
    """Each line and its scene."""
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            found.append(({name: row[name] for name in ("id", "image")}, scene_of(row["scene"])))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file} line {number} holds no scene ({error}): give a file that write_scenes wrote"
            ) from error
    return found


def scene_row(scene: Scene) -> dict[str, Any]:
    """A scene as plain data."""
    things = [[thing.kind, thing.colour, thing.cell] for thing in scene.things]
    return {"place": scene.place, "background": scene.background, "things": things}


def scene_of(row: dict[str, Any]) -> Scene:
    """What `scene_row` made."""
    things: Sequence[Sequence[Any]] = row["things"]
    return Scene(row["place"], row["background"], tuple(Thing(*thing) for thing in things))
