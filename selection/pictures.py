"""Which pictures `--images` means: those of a folder, of .tar shards and parquet files, and what these tell of them."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmrlhf.errors import UserError
from mmrlhf.images import SUFFIXES, list_images
from selection.compressed import Reader, is_compressed, is_shard
from selection.inside import Listed, Picture
from selection.parquet_pictures import Cell, TableReader, holds_pictures, is_table, read_table
from selection.webdataset import Member, read_shard

BRACES = re.compile(r"\{([^{}]*)\}")


def list_pictures(source: Path) -> Listed:
    """The pictures of a folder, of the .tar shards and parquet files in it, of one of these, or of those named with braces.

    In the order of the paths, and within a file as they lie; of equal names in a shard the last, as tar has it. UserError where
    there is no picture, or a file that the braces name is missing.
    """
    files = larger_files(source)
    if not files:
        return Listed(list(list_images(source)), {}, {})
    loose: list[Picture] = []
    if source.is_dir() and any(path.suffix.lower() in SUFFIXES for path in source.rglob("*")):
        loose = list(list_images(source))
    readers = Reader(), TableReader()  # one of each for all, so that no more than one file is open
    bar = tqdm(files, desc="shards", unit="file", disable=None, delay=1)
    parts = [read_larger(path, *readers) for path in bar]
    unreadable = {name: why for part in parts for name, why in part.unreadable.items()}
    pictures = loose + [picture for part in parts for picture in part.pictures]
    if not pictures:
        reason = next(iter(unreadable.values()), f"members end in {', '.join(SUFFIXES)}")
        raise UserError(
            f"no picture in {len(files)} shards of {source} ({reason}): give .tar files of webdataset, or parquet files with a "
            "column of pictures' bytes"
        )
    columns: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for part in parts for name in part.columns):
        columns[name] = [None] * len(loose)
        for part in parts:
            columns[name] += part.columns.get(name, [None] * len(part.pictures))
    return Listed(pictures, columns, unreadable)


def read_larger(path: Path, reader: Reader, table_reader: TableReader) -> Listed:
    """The pictures of a shard or a parquet file."""
    if is_table(path):
        return read_table(path, table_reader)
    return read_shard(path, reader if is_compressed(path) else None)


def is_larger(path: Path) -> bool:
    """Whether a name is that of a file that holds pictures."""
    return is_shard(path) or is_table(path)


def larger_files(source: Path) -> list[Path]:
    """The .tar files, compressed or not, and parquet files that `source` means; none where it is a folder without any, or
    something else."""
    if source.is_dir():
        found = sorted(path for path in source.rglob("*") if is_larger(path) and path.is_file())
        return [path for path in found if not is_table(path) or holds_pictures(path)]
    if not is_larger(source):
        return []
    given = []
    for path in [source] if source.exists() else map(Path, expand(str(source))):
        if not path.is_file():
            raise UserError(
                f"no shard {path}: give a .tar or parquet file, a folder of them, or '{{000..012}}.tar' in quotes"
            )
        given.append(path)
    return given


def expand(pattern: str) -> Iterator[str]:
    """Every name of a pattern with {a,b} or {00..12} in it, as a shell would; zeros in front are kept."""
    braces = BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    first, dots, last = braces[1].partition("..")
    if dots and first.isdecimal() and last.isdecimal() and int(first) <= int(last):
        padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
        width = max(len(first), len(last)) if padded else 0
        words: Iterator[str] = (f"{number:0{width}}" for number in range(int(first), int(last) + 1))
    elif "," in braces[1]:
        words = iter(braces[1].split(","))
    else:
        raise UserError(
            f"cannot read {braces[0]} in {pattern}: allowed are {{a,b}} and {{000..012}}, the smaller first"
        )
    for word in words:
        yield from expand(pattern[: braces.start()] + word + pattern[braces.end() :])


def places(pictures: Sequence[Picture], index: int) -> dict[str, Any]:
    """Where the bytes of a picture in a larger file, or in what it unpacks to, lie, for results; nothing of a file."""
    picture = pictures[index]
    return {} if isinstance(picture, Path) else picture.where()


def picture_at(path: str, pick: dict[str, Any], reader: Reader, table_reader: TableReader) -> Picture:
    """The picture that a result names, by its path or by what `places` said."""
    if "shard" in pick:
        return Member(Path(pick["shard"]), pick["member"], pick["start"], pick["size"], reader)
    if "table" in pick:
        return Cell(Path(pick["table"]), pick["column"], pick["row"], table_reader)
    return Path(path)
