"""`mmrlhf data import`: a data set as people have it becomes a JSONL file, with its images beside it where they were bytes."""

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image
from tqdm import tqdm

from mmrlhf.answers import AnswerPair
from mmrlhf.data import Pair
from mmrlhf.datasets import Format
from mmrlhf.datasets.checked import checked
from mmrlhf.datasets.corrections import segments_line
from mmrlhf.datasets.judgements import Annotation, line_of, with_images
from mmrlhf.datasets.rows import Fault, Row
from mmrlhf.errors import UserError
from mmrlhf.outcomes import Ranking, strict_pairs
from mmrlhf.points import PointedImage
from mmrlhf.segments import SegmentedItem

# one for judgements on images, one for pairs of answers, one for marked answers, one for images with points
FILES = ("outcomes", "answers", "segments", "points")
KIND: dict[type, str] = {AnswerPair: "answers", SegmentedItem: "segments", PointedImage: "points"}


@dataclass(frozen=True)
class ImportConfig:
    """Read a preference data set into a folder: pairs.jsonl, or outcomes.jsonl (ratings, rankings); answers.jsonl (texts);
    segments.jsonl (marked texts); points.jsonl (places in images)."""

    format: Format
    """Of images: pickapic, hpd (train.json or test.json), imagereward, folder. Of answers: hh, saferlhf, rlhfv (with
    segments.jsonl, the corrected spans), trl. Of both: label-studio, argilla. This project's own: pairs, outcomes, answers."""
    source: Path
    """The file, or a folder of parquet files; folder: one with metadata.jsonl, or with chosen/ and rejected/."""
    out: Path
    """A new folder for the JSONL file and, where the source holds bytes, images/."""
    images: Path | None = None
    """Where the source's image files are; by default beside it, as its authors ship them."""
    rankings: Literal["pairs", "keep"] = "pairs"
    """Of rankings (hpd, imagereward, outcomes): write their strict pairs, or keep them whole."""
    on_fault: Literal["refuse", "skip"] = "refuse"
    """A row that cannot be used ends the import, or is left out and counted."""


def import_data(config: ImportConfig) -> int:
    """How many judgements were written, in the order of the source. UserError names the first bad row; nothing is left behind.

    Images are kept in OUT.partial until all is read; an import that was killed finds them there when it is called again.
    """
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise UserError(f"--out {config.out} already holds files: give a new folder")
    partial = config.out.with_name(f"{config.out.name}.partial")
    try:
        (partial / "images").mkdir(parents=True, exist_ok=True)
        kinds, counts, faults = fill(partial, config)
        count = counts.total()
        if not count:
            raise UserError(f"no usable row in {config.source} ({faults} rows with faults): see `mmrlhf data validate`")
    except UserError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    names = {"outcomes": "pairs" if kinds <= {Pair, AnswerPair, SegmentedItem, PointedImage} else "outcomes"}
    said = {names.get(kind, kind): number for kind, number in counts.items()}
    place(partial, config.out, {kind: names.get(kind, kind) for kind in FILES})
    files = ", ".join(f"{number} {name}" for name, number in said.items())
    where = config.out / f"{next(iter(said))}.jsonl" if len(said) == 1 else config.out
    print(f"{files} ({faults} rows left out): {where}")
    return count


def fill(partial: Path, config: ImportConfig) -> tuple[set[type], Counter[str], int]:
    """Write what is usable into a folder: (the types of judgements, how many in each file, how many rows were left out)."""
    kinds: set[type] = set()
    counts, faults, files = Counter[str](), 0, dict[Path, Path]()
    with ExitStack() as stack:
        streams = {kind: stack.enter_context(open(partial / f"{kind}.jsonl", "w", encoding="utf-8")) for kind in FILES}
        for row in tqdm(checked(config.format, config.source, config.images), desc="import", unit="row"):
            if isinstance(row, Fault) and config.on_fault == "refuse":
                raise UserError(f"{row.where}: {row.problem}; mend it, or leave such rows out with --on-fault skip")
            if isinstance(row, Fault):
                faults += 1
                continue
            for judgement in kept(row, partial / "images", files, config.rankings):
                kinds.add(type(judgement))
                kind = KIND.get(type(judgement), "outcomes")
                counts[kind] += 1
                line = line_of(judgement, partial / f"{kind}.jsonl")
                streams[kind].write(json.dumps(line, ensure_ascii=False) + "\n")
                if config.format == "rlhfv" and isinstance(judgement, AnswerPair):
                    line = segments_line(judgement, partial / "segments.jsonl")
                    streams["segments"].write(json.dumps(line, ensure_ascii=False) + "\n")
    return kinds, counts, faults


def kept(row: Row, folder: Path, files: dict[Path, Path], rankings: str) -> list[Annotation]:
    """The judgements of a row; an image that was bytes is in `folder` then, once (`files`: its name in the row -> file)."""
    for name, data in row.held.items():
        if name not in files:
            files[name] = keep(name, data, folder)
    judgement = with_images(row.judgement, files)
    if isinstance(judgement, Ranking) and rankings == "pairs":
        return [*strict_pairs(judgement)]
    return [judgement]


def keep(name: Path, data: bytes, folder: Path) -> Path:
    """Write an image's own bytes under their hash, `name`."""
    with Image.open(io.BytesIO(data)) as picture:
        suffix = {"JPEG": ".jpg"}.get(str(picture.format), f".{str(picture.format).lower()}")
    path = folder / f"{name}{suffix}"
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(data)
        os.replace(temporary, path)
    return path


def place(partial: Path, out: Path, names: Mapping[str, str]) -> None:
    """Name the finished files, those without a line aside, and move the folder to where it belongs."""
    images = partial / "images"
    if not any(images.iterdir()):
        images.rmdir()
    for kind, name in names.items():
        file = partial / f"{kind}.jsonl"
        if file.stat().st_size:
            os.replace(file, partial / f"{name}.jsonl")
        else:
            file.unlink()
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rmdir()
    os.replace(partial, out)
