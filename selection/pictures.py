"""Which pictures `--images` means: those of a folder, of .tar shards, or of both, and what the shards tell of them."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmrlhf.errors import UserError
from mmrlhf.images import SUFFIXES, list_images
from selection.compressed import Reader, is_compressed, is_shard
from selection.webdataset import Listed, Member, read_shard

BRACES = re.compile(r"\{([^{}]*)\}")


def list_pictures(source: Path) -> Listed:
    """The pictures of a folder, of the .tar shards in it, of one shard, or of shards named with braces.

    In the order of the paths, and within a shard as they lie; of equal names the last, as tar has it. UserError where there
    is no picture, or a shard that the braces name is missing.
    """
    shards = shard_paths(source)
    if not shards:
        return Listed(list(list_images(source)), {}, {})
    loose: list[Path | Member] = []
    if source.is_dir() and any(path.suffix.lower() in SUFFIXES for path in source.rglob("*")):
        loose = list(list_images(source))
    reader = Reader()  # one for all, so that no more than one compressed shard is open
    bar = tqdm(shards, desc="shards", unit="shard", disable=None, delay=1)
    parts = [read_shard(shard, reader if is_compressed(shard) else None) for shard in bar]
    unreadable = {name: why for part in parts for name, why in part.unreadable.items()}
    pictures = loose + [picture for part in parts for picture in part.pictures]
    if not pictures:
        reason = next(iter(unreadable.values()), f"members end in {', '.join(SUFFIXES)}")
        raise UserError(f"no picture in {len(shards)} shards of {source} ({reason}): give .tar files of webdataset")
    columns: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for part in parts for name in part.columns):
        columns[name] = [None] * len(loose)
        for part in parts:
            columns[name] += part.columns.get(name, [None] * len(part.pictures))
    return Listed(pictures, columns, unreadable)


def shard_paths(source: Path) -> list[Path]:
    """The .tar files, compressed or not, that `source` means; none where it is a folder without any, or something else."""
    if source.is_dir():
        return sorted(path for path in source.rglob("*") if is_shard(path) and path.is_file())
    if not is_shard(source):
        return []
    found = []
    for path in [source] if source.exists() else map(Path, expand(str(source))):
        if not path.is_file():
            raise UserError(f"no shard {path}: give a .tar file, a folder of them, or '{{000..012}}.tar' in quotes")
        found.append(path)
    return found


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


def places(pictures: Sequence[Path | Member], index: int) -> dict[str, Any]:
    """Where the bytes of a picture in a shard, or in what it unpacks to, lie, for results; nothing of a file."""
    picture = pictures[index]
    if isinstance(picture, Path):
        return {}
    return {"shard": str(picture.shard), "member": picture.name, "start": picture.start, "size": picture.size}
