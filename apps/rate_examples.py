"""`--examples`: pictures beside the instructions that show what they mean, each with a few words."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from apps.rate_items import Reader, read_rows
from mmrlhf.errors import UserError
from mmrlhf.images import list_images

LIST = "examples.jsonl"  # a folder that holds it is read through it
COLUMNS = ("image", "caption", "better")
MOST, MOST_LETTERS = 24, 300


class Example(NamedTuple):
    """A picture that shows raters what is meant: its content hash, file, words, and whether it is how things should be."""

    key: str
    path: str
    caption: str
    better: bool | None = None


def read_examples(source: Path) -> tuple[Example, ...]:
    """The pictures of a folder, whose names are their captions, or of a JSONL file that says more of them, in order.

    UserError where there is none, one is no picture, or a row says something else.
    """
    reader = Reader()
    found = []
    for where, folder, row in rows_of(source):
        if more := sorted(set(row) - set(COLUMNS)):
            raise UserError(f"{where} has {', '.join(more)!r:.60}, allowed are {', '.join(COLUMNS)}: mend the row")
        caption, better = row.get("caption", ""), row.get("better")
        if not isinstance(caption, str) or len(caption) > MOST_LETTERS:
            raise UserError(f"{where}: caption got {caption!r:.60}, allowed is a text of up to {MOST_LETTERS} letters")
        if better is not None and not isinstance(better, bool):
            raise UserError(f"{where}: better got {better!r:.40}, allowed is true or false")
        key = reader.add(where, folder, row["image"], "")
        found.append(Example(key, reader.items[key][0], caption.strip(), better))
    if not 0 < len(found) <= MOST:
        raise UserError(f"{source} has {len(found)} examples, allowed are 1 to {MOST}: give those that show most")
    return tuple(found)


def rows_of(source: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """(where, folder that paths start from, row) of each example."""
    listed = source / LIST if source.is_dir() and (source / LIST).is_file() else source
    if listed.is_dir():
        for path in list_images(listed):
            words = " ".join(path.stem.replace("_", " ").replace("-", " ").split())
            yield str(path), listed, {"image": str(path.resolve()), "caption": words[:MOST_LETTERS]}
        return
    if not listed.is_file() or listed.suffix.lower() != ".jsonl":
        raise UserError(f"no examples at {source}: give a folder of pictures, or a JSONL file")
    yield from read_rows(listed, [{"image"}])
