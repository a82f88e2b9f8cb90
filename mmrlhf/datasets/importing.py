"""`mmrlhf data import`: a data set as people have it becomes a PAIRS.jsonl, with its images beside it where they were bytes."""

import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from mmrlhf.data import Pair, write_pairs
from mmrlhf.datasets import Format, reader
from mmrlhf.datasets.rows import Fault, Row
from mmrlhf.errors import UserError
from mmrlhf.images import content_hash


@dataclass(frozen=True)
class ImportConfig:
    """Read a preference data set into a folder with pairs.jsonl, which `mmrlhf reward train --data` takes."""

    format: Format
    """pickapic: parquet files; hpd: train.json or test.json; imagereward: a JSON file of rankings; pairs: a PAIRS.jsonl."""
    source: Path
    """The file (pickapic: or a folder of parquet files)."""
    out: Path
    """A new folder for pairs.jsonl and, where the source holds bytes, images/."""
    images: Path | None = None
    """Where the source's image files are; by default beside it, as its authors ship them."""
    on_fault: Literal["refuse", "skip"] = "refuse"
    """A row that cannot be used ends the import, or is left out and counted."""


def import_data(config: ImportConfig) -> list[Pair]:
    """Every usable pair in order. UserError names the first bad row; then nothing is left behind.

    Images are kept in OUT.partial until all is read; an import that was killed finds them there when it is called again.
    """
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise UserError(f"--out {config.out} already holds files: give a new folder")
    partial = config.out.with_name(f"{config.out.name}.partial")
    pairs, faults = [], 0
    try:
        (partial / "images").mkdir(parents=True, exist_ok=True)
        for row in tqdm(checked(config.format, config.source, config.images), desc="import", unit="row"):
            if isinstance(row, Fault) and config.on_fault == "refuse":
                raise UserError(f"{row.where}: {row.problem}; mend it, or leave such rows out with --on-fault skip")
            if isinstance(row, Fault):
                faults += 1
            else:
                pairs.append(pair_of(row, partial / "images"))
        if not pairs:
            raise UserError(
                f"no usable pair in {config.source} ({faults} rows with faults): see `mmrlhf data validate`"
            )
    except UserError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    place(pairs, partial, config.out)
    print(f"{len(pairs)} pairs ({faults} rows left out): {config.out / 'pairs.jsonl'}")
    return pairs


def checked(name: str, source: Path, images: Path | None) -> Iterator[Row | Fault]:
    """The rows of a data set, each image decoded once: one that is truncated or no image makes its row a fault."""
    known: dict[str | Path, str] = {}
    for row in reader(name)(source, images):
        if isinstance(row, Row) and (problem := image_problem(row, known)):
            yield Fault(row.where, problem)
        else:
            yield row


def image_problem(row: Row, known: dict[str | Path, str]) -> str:
    """What is wrong with the row's images, "" where nothing is; `known` remembers the answer for each image."""
    keys: list[str | Path] = []
    for side, image in enumerate((row.image_0, row.image_1)):
        key = content_hash(image) if isinstance(image, bytes) else image
        keys.append(key)
        if key not in known:
            known[key] = undecodable(image)
        if known[key]:
            return f"image {side} cannot be decoded ({known[key]})"
    return "compares an image with itself" if keys[0] == keys[1] else ""


def undecodable(image: Path | bytes) -> str:
    """Why the picture cannot be decoded, or ""."""
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as picture:
            picture.load()
    except UnidentifiedImageError:
        return "no image"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error) or type(error).__name__
    return ""


def pair_of(row: Row, folder: Path) -> Pair:
    """The row as a `Pair`; an image that was bytes is kept in `folder` under its content hash, once."""
    files = [image if isinstance(image, Path) else keep(image, folder) for image in (row.image_0, row.image_1)]
    return Pair(row.prompt, files[0], files[1], row.label_0, row.group, row.has_label)


def keep(data: bytes, folder: Path) -> Path:
    """Write an image's own bytes under their hash."""
    with Image.open(io.BytesIO(data)) as picture:
        suffix = {"JPEG": ".jpg"}.get(str(picture.format), f".{str(picture.format).lower()}")
    path = folder / f"{content_hash(data)}{suffix}"
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(data)
        os.replace(temporary, path)
    return path


def place(pairs: list[Pair], partial: Path, out: Path) -> None:
    """Write pairs.jsonl into the finished folder and move it to where it belongs."""
    images = partial / "images"
    if not any(images.iterdir()):
        images.rmdir()
    write_pairs(pairs, partial / "pairs.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rmdir()
    os.replace(partial, out)
