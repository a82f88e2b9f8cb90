"""Comparisons and items on disk: PAIRS.jsonl (Pick-a-Pic's columns), ITEMS.jsonl, and files of prompts."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from mmrlhf.errors import UserError

PAIR_COLUMNS = ("prompt", "image_0", "image_1", "label_0", "label_1")
# what any judgement may carry (see `Pair`)
SURROGATES = re.compile("[\ud800-\udfff]")  # halves of characters, which no file can hold
JUDGEMENT_COLUMNS = ("group", "has_label", "annotator", "criterion")
# may be there; those of Pick-a-Pic are passed over
OPTIONAL_PAIR_COLUMNS = (
    *JUDGEMENT_COLUMNS, "margin", "are_different", "best_image_uid", "created_at", "image_0_uid", "image_1_uid", "image_0_url",
    "image_1_url", "model_0", "model_1", "ranking_id", "user_id", "num_example_per_prompt",
)  # fmt: skip
ITEM_COLUMNS = ("prompt", "image")
OPTIONAL_ITEM_COLUMNS = ("score",)


@runtime_checkable
class HasUnit(Protocol):
    """A judgement of any kind."""

    @property
    def unit(self) -> str: ...


Judged = TypeVar("Judged", bound=HasUnit)


@dataclass(frozen=True)
class Pair:
    """Two images compared for one prompt; `label_0` is the weight of the first in [0, 1], 0.5 a tie.

    Pairs of one `group` stay together when data are split and are resampled together; "" means the prompt.
    `has_label` is false where nobody judged the pair: such rows may train, and are left out of every evaluation.
    `criterion` is what was asked ("" = which is better overall); each has a head of its own in a reward. `margin` is by how
    much the preferred should win, in units of the score (Touvron et al. 2023).
    """

    prompt: str
    image_0: Path
    image_1: Path
    label_0: float
    group: str = ""
    has_label: bool = True
    annotator: str = ""
    criterion: str = ""
    margin: float = 0.0

    @property
    def unit(self) -> str:
        """What is independent of everything else: the group, else the prompt."""
        return self.group or self.prompt


@dataclass(frozen=True)
class Item:
    """An image and the prompt that it is for."""

    prompt: str
    image: Path


def read_pairs(path: Path) -> list[Pair]:
    """The comparisons of a PAIRS.jsonl, in order; paths in it are relative to the file. UserError names the bad row."""
    return list(read_rows(path, PAIR_COLUMNS, OPTIONAL_PAIR_COLUMNS, pair_of))


def read_items(path: Path) -> list[Item]:
    """The items of an ITEMS.jsonl, in order; paths in it are relative to the file. UserError names the bad row."""
    return list(read_rows(path, ITEM_COLUMNS, OPTIONAL_ITEM_COLUMNS, item_of))


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line; blank lines are left out. UserError where there is none."""
    prompts = [line.strip() for line in read_text(path, "a text file with a prompt a line").splitlines()]
    if not any(prompts):
        raise UserError(f"no prompt in {path}: write a prompt a line")
    return [prompt for prompt in prompts if prompt]


def write_pairs(pairs: Sequence[Pair], path: Path) -> None:
    """Write a PAIRS.jsonl that `read_pairs` reads back equal (up to how paths are spelled); whole or not at all."""
    write_jsonl([pair_row(pair, path) for pair in pairs], path)


def pair_row(pair: Pair, file: Path) -> dict[str, Any]:
    """A comparison as a line of `file`."""
    row: dict[str, Any] = {"prompt": pair.prompt}
    row |= {name: relative(image, file) for name, image in (("image_0", pair.image_0), ("image_1", pair.image_1))}
    row |= {"label_0": pair.label_0, "label_1": 1 - pair.label_0}
    return row | carried(pair) | ({"margin": pair.margin} if pair.margin else {})


def carried(judgement: Any) -> dict[str, Any]:
    """The columns of `JUDGEMENT_COLUMNS` that say something, of any kind of judgement."""
    texts = {name: getattr(judgement, name) for name in ("group", "annotator", "criterion")}
    return {name: value for name, value in texts.items() if value} | (
        {} if judgement.has_label else {"has_label": False}
    )


def write_jsonl(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a JSON object a line; the file appears whole or not at all."""
    write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), path)


def write_text(text: str, path: Path) -> None:
    """Write a file that appears whole or not at all. UserError where `path` is a folder."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to: it takes the place of `path` at the end, or is gone after an error.

    UserError where `path` is a folder.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_unused(folder: Path) -> bool:
    """Whether nothing is there, or a folder that holds at most the leavings of a write that was cut off (*.tmp)."""
    return not folder.exists() or (folder.is_dir() and all(path.suffix == ".tmp" for path in folder.iterdir()))


def relative(image: Path, file: Path) -> str:
    """How `file` should name `image`: relative to its own folder, with forward slashes."""
    return Path(os.path.relpath(image.resolve(), file.resolve().parent)).as_posix()


def split_by_prompt(pairs: Sequence[Judged], fraction: float, seed: int) -> tuple[list[Judged], list[Judged]]:
    """(the rest, about `fraction` of the prompts or groups): none is on both sides, and neither side is empty.

    `pairs` may be judgements of any kind that have a `unit`.

    UserError where `fraction` is not between 0 and 1, or there are fewer than two prompts.
    """
    if not 0 < fraction < 1:
        raise UserError(f"the share of prompts to hold out got {fraction}, allowed is between 0 and 1")
    units = sorted({pair.unit for pair in pairs})
    if len(units) < 2:
        raise UserError(f"got {len(units)} prompts to split into two parts: give pairs of at least 2 prompts")
    count = min(len(units) - 1, max(1, round(fraction * len(units))))
    held_out = {units[i] for i in np.random.default_rng(seed).permutation(len(units))[:count]}
    return [p for p in pairs if p.unit not in held_out], [p for p in pairs if p.unit in held_out]


def read_rows(
    path: Path, required: Sequence[str], optional: Sequence[str], convert: Callable[[dict[str, Any], Path, str], Any]
) -> Iterator[Any]:
    """Each line of a JSONL file, converted; blank lines are left out. UserError names the line and the fix."""
    for where, line in lines_of(path, required):
        yield convert(parse_row(line, where, required, optional), path.parent, where)


def lines_of(path: Path, required: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(where, line) for each line that is not blank. UserError where there is none, or no such file."""
    example = example_row(required)
    found = False
    for number, line in enumerate(read_text(path, f"a file with {example} a line").split("\n"), start=1):
        if line.strip():
            found = True
            yield f"{path} row {number}", line
    if not found:
        raise UserError(f"{path} is empty: write {example} a line")


def parse_row(line: str, where: str, required: Sequence[str], optional: Sequence[str]) -> dict[str, Any]:
    """A line of JSONL as an object of known columns."""
    row = parse_object(line, where, required)
    check_columns(row, where, required, optional)
    return row


def parse_object(line: str, where: str, required: Sequence[str]) -> dict[str, Any]:
    """A line of JSONL as an object; `required` is how it should look, for the message."""
    example = example_row(required)
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}): write {example}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where} is a {type(row).__name__}, not an object: write {example}")
    return row


def check_columns(row: dict[str, Any], where: str, required: Sequence[str], optional: Sequence[str]) -> None:
    """UserError for a column that is missing or unknown."""
    missing = [name for name in required if name not in row]
    unknown = [name for name in row if name not in required and name not in optional]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}: write {example_row(required)}")
    if unknown:
        allowed = ", ".join([*required, *optional])
        raise UserError(f"{where} has the unknown column {', '.join(unknown)}: allowed are {allowed}")


def example_row(required: Sequence[str]) -> str:
    """How a line should look, for messages."""
    return "{" + ", ".join(f'"{name}": …' for name in required) + "}"


def pair_of(row: dict[str, Any], folder: Path, where: str) -> Pair:
    """A checked row as a `Pair`."""
    labels = [label_of(row, name, where) for name in ("label_0", "label_1")]
    if abs(sum(labels) - 1) > 1e-6:
        raise UserError(
            f"{where}: label_0 {labels[0]:g} and label_1 {labels[1]:g} sum to {sum(labels):g}, allowed is 1: write 1 and 0, "
            "0 and 1, or 0.5 and 0.5 for a tie"
        )
    first, second = image_of(row, "image_0", folder, where), image_of(row, "image_1", folder, where)
    if first == second:
        raise UserError(f"{where} compares {row['image_0']} with itself: name two images, or remove the row")
    margin = margin_of(row, where)
    return Pair(prompt_of(row, where), first, second, labels[0], margin=margin, **carried_of(row, where))


def margin_of(row: dict[str, Any], where: str) -> float:
    margin = row.get("margin", 0.0)
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin <= sys.float_info.max:
        raise UserError(f"{where}: margin got {margin!r:.80}, allowed is a number, 0 or more")
    return float(margin)


def carried_of(row: dict[str, Any], where: str) -> dict[str, Any]:
    """The checked columns of `JUDGEMENT_COLUMNS` that are there."""
    found = {name: row[name] for name in JUDGEMENT_COLUMNS if name in row}
    for name, value in found.items():
        wanted, words = (bool, "true or false") if name == "has_label" else (str, "a text")
        if not isinstance(value, wanted) or (isinstance(value, str) and SURROGATES.search(value)):
            raise UserError(f"{where}: {name} got {value!r:.80}, allowed is {words}")
    return found


def item_of(row: dict[str, Any], folder: Path, where: str) -> Item:
    """A checked row as an `Item`."""
    return Item(prompt_of(row, where), image_of(row, "image", folder, where))


def prompt_of(row: dict[str, Any], where: str) -> str:
    if not isinstance(row["prompt"], str):
        raise UserError(f"{where}: prompt got {row['prompt']!r}, allowed is a text: put it in quotes")
    if SURROGATES.search(row["prompt"]):
        raise UserError(f"{where}: prompt got {row['prompt']!r}, half of a surrogate pair: write whole characters")
    return row["prompt"]


def label_of(row: dict[str, Any], name: str, where: str) -> float:
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(
            f"{where}: {name} got {value!r:.80}, allowed is a number from 0 to 1: 1 preferred, 0 not, 0.5 a tie"
        )
    return float(value)


def image_of(row: dict[str, Any], name: str, folder: Path, where: str) -> Path:
    if not isinstance(row[name], str) or not row[name]:
        raise UserError(f"{where}: {name} got {row[name]!r}, allowed is the path of an image, relative to {folder}")
    path = Path(os.path.normpath(folder / row[name]))
    if not path.is_file():
        raise UserError(f"{where}: no file {path} ({name}): paths are relative to the file that names them")
    return path


def read_text(path: Path, wanted: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"cannot read {path} ({reason}): give {wanted}") from error
