"""`mmrlhf data import`: a data set as people have it becomes a JSONL file, with its images beside it where they were bytes."""

import io
import json
import os
import shutil
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
from mmrlhf.datasets.judgements import Judgement, line_of, with_images
from mmrlhf.datasets.rows import Fault, Row
from mmrlhf.errors import UserError
from mmrlhf.outcomes import Ranking, strict_pairs


@dataclass(frozen=True)
class ImportConfig:
    """Read a preference data set into a folder: pairs.jsonl, outcomes.jsonl (ratings, rankings) or answers.jsonl (texts)."""

    format: Format
    """Of images: pickapic, hpd (train.json or test.json), imagereward, folder. Of answers: hh, saferlhf, rlhfv (with
    segments.jsonl, the corrected spans), trl. This project's own: pairs, outcomes, answers."""
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
        kinds, count, faults = fill(partial, config)
        if not count:
            raise UserError(f"no usable row in {config.source} ({faults} rows with faults): see `mmrlhf data validate`")
    except UserError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    name = name_of(kinds)
    place(partial, config.out, name)
    print(f"{count} {name.removesuffix('.jsonl')} ({faults} rows left out): {config.out / name}")
    return count


def fill(partial: Path, config: ImportConfig) -> tuple[set[type], int, int]:
    """Write what is usable into a folder: (the types of judgements, how many, how many rows were left out)."""
    kinds: set[type] = set()
    count, faults, files = 0, 0, dict[Path, Path]()
    corrected = config.format == "rlhfv"
    with (
        open(partial / "rows.jsonl", "w", encoding="utf-8") as out,
        open(partial / "segments.jsonl", "w", encoding="utf-8") as segments,
    ):
        for row in tqdm(checked(config.format, config.source, config.images), desc="import", unit="row"):
            if isinstance(row, Fault) and config.on_fault == "refuse":
                raise UserError(f"{row.where}: {row.problem}; mend it, or leave such rows out with --on-fault skip")
            if isinstance(row, Fault):
                faults += 1
                continue
            for judgement in kept(row, partial / "images", files, config.rankings):
                kinds.add(type(judgement))
                count += 1
                out.write(json.dumps(line_of(judgement, partial / "rows.jsonl"), ensure_ascii=False) + "\n")
                if corrected and isinstance(judgement, AnswerPair):
                    line = segments_line(judgement, partial / "segments.jsonl")
                    segments.write(json.dumps(line, ensure_ascii=False) + "\n")
    if not corrected:
        (partial / "segments.jsonl").unlink()
    return kinds, count, faults


def kept(row: Row, folder: Path, files: dict[Path, Path], rankings: str) -> list[Judgement]:
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


def name_of(kinds: set[type]) -> str:
    """The file for judgements of these types."""
    return "answers.jsonl" if AnswerPair in kinds else "pairs.jsonl" if kinds == {Pair} else "outcomes.jsonl"


def place(partial: Path, out: Path, name: str) -> None:
    """Name the finished file, and move the folder to where it belongs."""
    images = partial / "images"
    if not any(images.iterdir()):
        images.rmdir()
    os.replace(partial / "rows.jsonl", partial / name)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rmdir()
    os.replace(partial, out)
