"""A folder of images with what somebody said of them, in one of two layouts.

metadata.jsonl, as image folders of the package `datasets` have it, a line an image or a pair, paths relative to it:
  {"file_name", "prompt" (or "text", "caption"), "rating" and "levels" (5 if not said)}
  {"chosen_file_name", "rejected_file_name", "prompt" …}
  each with "annotator" and "criterion" where known; other columns are passed over.
chosen/ and rejected/, in which files of one name (whatever the suffix) are a pair, its prompt in NAME.txt beside either.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmrlhf.data import Pair
from mmrlhf.datasets.json_lines import Records, objects
from mmrlhf.datasets.rows import BadRow, Row, Rows, existing, rows_of, text
from mmrlhf.errors import UserError
from mmrlhf.images import SUFFIXES
from mmrlhf.outcomes import Rating, rating_of

PROMPTS = ("prompt", "text", "caption")
SIDES = ("chosen", "rejected")


def read(source: Path, images: Path | None) -> Rows:
    """The ratings and pairs of a folder, or of a metadata.jsonl; `images` is where its files are, if not beside it."""
    table = source / "metadata.jsonl" if source.is_dir() else source
    if table.is_file():
        folder = images or table.parent
        return rows_of(objects(table), lambda where, record: [Row(where, described(record, folder, where))])
    if not all((source / side).is_dir() for side in SIDES):
        raise UserError(
            f"{source} has neither a metadata.jsonl nor the folders chosen and rejected: give one that does"
        )
    return rows_of(matched(source), lambda where, record: [Row(where, Pair(**record, label_0=1.0))])


def described(record: dict[str, Any], folder: Path, where: str) -> Pair | Rating:
    """A line of metadata.jsonl."""
    prompt = text(record, next((name for name in PROMPTS if name in record), "prompt"))
    names: dict[str, Any] = {name: text(record, name) for name in ("annotator", "criterion") if record.get(name)}
    if "chosen_file_name" in record:
        first, second = (existing(folder, text(record, f"{side}_file_name")) for side in SIDES)
        return Pair(prompt, first, second, 1.0, **names)
    if record.get("rating") is None:
        raise BadRow("has no rating and no chosen_file_name, so that it says nothing of the image")
    scale: dict[str, Any] = {name: whole(record[name]) for name in ("rating", "levels") if name in record}
    return rating_of({"prompt": prompt, "image": text(record, "file_name"), **scale, **names}, folder, where)


def whole(value: Any) -> Any:
    """4.0, as tables write whole numbers beside empty cells, as 4."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def matched(source: Path) -> Records:
    """(where, columns of a pair) for each image of chosen/ and rejected/."""
    chosen, rejected = (dict(images_in(source / side)) for side in SIDES)
    if not chosen:
        raise UserError(f"no image in {source / 'chosen'}: put files ending in {', '.join(SUFFIXES)} there")
    for name, image in chosen.items():
        other, prompt = rejected.get(name), prompt_beside(source, name)
        problem = "" if other else f"no image {name} in {source / 'rejected'}"
        problem = problem or ("" if prompt else f"no prompt in {image.with_suffix('.txt')}")
        yield str(image), BadRow(problem) if problem else {"prompt": prompt, "image_0": image, "image_1": other}
    for name in rejected.keys() - chosen.keys():
        yield str(rejected[name]), BadRow(f"no image {name} in {source / 'chosen'}")


def images_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """(path below the folder without its suffix, path) of each image, in order."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            yield path.relative_to(folder).with_suffix("").as_posix(), path


def prompt_beside(source: Path, name: str) -> str:
    """The text of NAME.txt in one of the two folders, or ""."""
    for side in SIDES:
        file = source / side / f"{name}.txt"
        if file.is_file():
            return file.read_text(encoding="utf-8", errors="replace").strip()
    return ""
