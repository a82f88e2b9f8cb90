"""Points in images, and what is there: a JSON object an image.

`{"prompt", "image", "points": [{"x", "y", "tag"}, …], "group", "annotator"}`, x from 0 at the left edge to 1 at the right,
y from 0 at the top to 1 at the bottom. No points: somebody looked, and found nothing to point at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmrlhf.data import SURROGATES, carried_of, image_of, prompt_of, read_rows, relative, write_jsonl
from mmrlhf.errors import UserError
from mmrlhf.outcomes import is_real

COLUMNS = ("prompt", "image", "points")
OPTIONAL_COLUMNS = ("group", "annotator")


class Point(NamedTuple):
    """A place in a picture, and what is there: x is 0 at the left edge, 1 at the right; y is 0 at the top, 1 at the bottom."""

    x: float
    y: float
    tag: str


@dataclass(frozen=True)
class PointedImage:
    """An image with everything that one annotator pointed at in it."""

    prompt: str
    image: Path
    points: tuple[Point, ...]
    group: str = ""
    annotator: str = ""

    @property
    def unit(self) -> str:
        """What is independent of everything else: the group, else the prompt."""
        return self.group or self.prompt


def read_points(path: Path) -> list[PointedImage]:
    """The images of a POINTS.jsonl, in order; paths in it are relative to the file. UserError names the bad row."""
    return list(read_rows(path, COLUMNS, OPTIONAL_COLUMNS, pointed_image_of))


def write_points(images: Sequence[PointedImage], path: Path) -> None:
    """Write a file that `read_points` reads back equal; whole or not at all."""
    write_jsonl([points_row(image, path) for image in images], path)


def points_row(pointed: PointedImage, file: Path) -> dict[str, Any]:
    """A line of `file`."""
    row = {
        "prompt": pointed.prompt,
        "image": relative(pointed.image, file),
        "points": list(map(Point._asdict, pointed.points)),
    }
    return row | {name: value for name in OPTIONAL_COLUMNS if (value := getattr(pointed, name))}


def pointed_image_of(row: dict[str, Any], folder: Path, where: str) -> PointedImage:
    """A checked row as a `PointedImage`."""
    points = points_of(row["points"], where)
    return PointedImage(prompt_of(row, where), image_of(row, "image", folder, where), points, **carried_of(row, where))


def points_of(value: Any, where: str) -> tuple[Point, ...]:
    """The objects of `points`. UserError for a place outside the image, and for one without a tag."""
    if not isinstance(value, list):
        raise UserError(f"{where}: points got {value!r:.80}, allowed is a list of objects")
    found = []
    for number, point in enumerate(value, start=1):
        if not isinstance(point, dict) or set(point) != set(Point._fields):
            raise UserError(f"{where} point {number} got {point!r:.80}, allowed is an object with x, y and tag")
        x, y, tag = point["x"], point["y"], point["tag"]
        if not all(is_real(each) and 0 <= each <= 1 for each in (x, y)):
            raise UserError(f"{where} point {number}: x got {x!r:.40}, y {y!r:.40}, allowed are numbers from 0 to 1")
        if not isinstance(tag, str) or not tag or SURROGATES.search(tag):
            raise UserError(f"{where} point {number}: tag got {tag!r:.80}, allowed is a text that is not empty")
        found.append(Point(float(x), float(y), tag))
    return tuple(found)
