"""Pictures in .tar shards, compressed or not, as webdataset writes them: KEY.jpg, its prompt in KEY.txt, the rest in KEY.json."""

import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrlhf.errors import UserError
from mmrlhf.images import SUFFIXES
from selection.compressed import Reader, open_shard
from selection.inside import Inside, Listed

UNSAFE = re.compile("[\x00-\x1f\x7f\\\\\ud800-\udfff]")  # no part of a name that a path or a page could hold
NAME = re.compile(
    r"((?:.*/)?[^/.]+)\.([^/]+)", re.DOTALL
)  # the key ends at the first dot of the last part, as webdataset has it
MOST_NOTES = 1 << 20  # bytes of a prompt or of metadata
MOST_PICTURE = 1 << 28  # bytes of a picture, as a compressed shard may say that it holds any number


@dataclass(frozen=True)
class Member(Inside):
    """A file inside a .tar: `size` bytes from `start` on, of what a compressed one holds; `reader` keeps that open."""

    shard: Path
    name: str
    start: int
    size: int
    reader: Reader | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return str(self.shard / self.name)

    def read_bytes(self) -> bytes:
        """What is in it. UserError where the shard ends before it does."""
        try:
            if self.reader is not None:
                data = self.reader.read(self.shard, self.start, self.size)
            else:
                with open_shard(self.shard) as file:
                    file.seek(self.start)
                    data = file.read(self.size)
        except OSError as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{self} cannot be read ({reason}): get the shard again") from error
        if len(data) < self.size:
            raise UserError(f"{self} is cut off after {len(data)} of {self.size} bytes: get the shard again")
        return data

    def where(self) -> dict[str, Any]:
        return {"shard": str(self.shard), "member": self.name, "start": self.start, "size": self.size}


def read_shard(shard: Path, reader: Reader | None = None) -> Listed:
    """The pictures of one shard up to where it is cut off or damaged, which is told under its own name.

    `reader` is for those of a compressed one.
    """
    pictures: dict[str, Member] = {}
    notes: dict[str, dict[str, Any]] = {}
    unreadable: dict[str, str] = {}
    try:
        with open_shard(shard) as file:
            for info in entries(file):
                key, kind = split_name(info.name)
                member = Member(shard, info.name, info.offset_data, info.size, reader)
                told = ascii(info.name)[1:-1] if UNSAFE.search(info.name) else info.name
                if kind is None:
                    continue
                if (why := fault(info)) is not None:
                    unreadable[f"{shard}/{told}"] = f"{shard} holds {told}, {why}: it is left out"
                elif kind not in ("txt", "json"):
                    pictures[info.name] = member
                elif (found := read_notes(file, info, kind)) is None:
                    unreadable[str(member)] = f"{member} is no {NOTES[kind]}: its picture has no metadata of it"
                else:  # the prompt of a KEY.json counts, whichever comes first
                    before = notes.get(key, {})
                    notes[key] = before | found if kind == "json" else found | before
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        unreadable[str(shard)] = (
            f"{shard} is cut off, damaged or not what its name says ({reason}): what lies before is taken; get it again"
        )
    known = [notes.get(split_name(name)[0], {}) for name in pictures]
    columns = {name: [row.get(name) for row in known] for name in dict.fromkeys(key for row in known for key in row)}
    return Listed(list(pictures.values()), columns, unreadable)


NOTES = {"txt": f"text of UTF-8 up to {MOST_NOTES} bytes", "json": f"JSON object of up to {MOST_NOTES} bytes"}


def entries(file: io.BufferedReader) -> Iterator[tarfile.TarInfo]:
    """The headers of a .tar, in order. ReadError where it does not go forward, or lacks the blocks of zeros at its end."""
    last = -1
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for info in tar:
            if info.offset <= last or info.size < 0:  # a size below 0 would lead back, round and round
                raise tarfile.ReadError("a header points backwards")
            last = info.offset
            yield info
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no header and no end mark at byte {tar.offset}")


def split_name(name: str) -> tuple[str, str | None]:
    """(key, "txt", "json" or a picture's suffix); None for the kind of what is passed over."""
    parts = NAME.fullmatch(name)
    if parts is None:
        return name, None
    kind = parts[2].lower()
    if kind in ("txt", "json"):
        return parts[1], kind
    suffix = Path("x." + kind).suffix
    return parts[1], suffix if suffix in SUFFIXES else None


def fault(info: tarfile.TarInfo) -> str | None:
    """Why a member is not read: nothing is ever unpacked, but its name goes into results, which others may follow."""
    if info.name.startswith("/") or ".." in info.name.split("/") or UNSAFE.search(info.name):
        return "a name that leads out of the shard or is no text"
    if not info.isreg() or info.sparse is not None:
        return "which is a link, a folder or a device"
    if info.size > MOST_PICTURE:
        return f"of more than {MOST_PICTURE} bytes"
    return None


def read_notes(file: io.BufferedReader, info: tarfile.TarInfo, kind: str) -> dict[str, Any] | None:
    """The prompt in a text, or the values in a JSON object without lists and missing ones; None where it is neither."""
    if info.size > MOST_NOTES:
        return None
    file.seek(info.offset_data)
    data = file.read(info.size)
    try:
        text = data.decode("utf-8-sig")
        found: Any = {"prompt": text.strip()} if kind == "txt" else json.loads(text)
    except (ValueError, RecursionError):
        return None
    if len(data) < info.size:
        return None
    if not isinstance(found, dict):
        return None
    return {name: value for name, value in found.items() if value is not None and not isinstance(value, list | dict)}
