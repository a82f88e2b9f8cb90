"""Compressed .tar shards as files of what they hold: read front to back, and from the front again to go back."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmrlhf.errors import UserError

CHUNK = 1 << 20  # bytes passed over at a time
BUFFER = 1 << 16  # within which going back costs nothing
ZSTD_CHUNK = 1 << 12  # bytes of a read, all of which are lost where the file is cut off in them


def open_zstd(path: Path) -> Any:
    """A file of what a .zst holds."""
    try:
        import pyarrow as pa
    except ModuleNotFoundError as error:
        raise UserError(f"{path} needs pyarrow to be unpacked: pip install 'mmrlhf[selection]'") from error
    return pa.input_stream(str(path), compression="zstd")


OPENERS: dict[str, Callable[[Path], Any]] = {
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tar.xz": lzma.open,
    ".tar.zst": open_zstd,
}
SHARD_SUFFIXES = (".tar", *OPENERS)


def is_shard(path: Path) -> bool:
    """Whether a name is that of a .tar, compressed or not."""
    return path.name.lower().endswith(SHARD_SUFFIXES)


def is_compressed(path: Path) -> bool:
    """Whether a shard's name says that it is compressed."""
    return path.name.lower().endswith(tuple(OPENERS))


def open_shard(path: Path) -> io.BufferedReader:
    """The .tar itself, for reading and seeking. OSError where it cannot be read or, later on, unpacked."""
    if not is_compressed(path):
        return open(path, "rb")
    return io.BufferedReader(Unpacked(path), BUFFER)


class Unpacked(io.RawIOBase):
    """What a compressed file holds. A seek forward unpacks what lies between, one back all from the front."""

    def __init__(self, path: Path):
        self.path, self.place = path, 0
        self.opener = next(opener for suffix, opener in OPENERS.items() if path.name.lower().endswith(suffix))
        self.source = self.opener(path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end of a compressed file is not known")
        wanted = offset + (self.place if whence == io.SEEK_CUR else 0)
        if wanted < self.place:
            self.source.close()
            self.source, self.place = self.opener(self.path), 0
        while self.place < wanted and self.some(min(CHUNK, wanted - self.place)):
            continue
        return self.place

    def readinto(self, buffer: Any) -> int:
        data = self.some(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def some(self, size: int) -> bytes:
        """At most `size` bytes, none at the end."""
        try:  # not `read`, which would lose what is whole before the place where the file is cut off
            zstd = self.opener is open_zstd
            data: bytes = self.source.read(min(size, ZSTD_CHUNK)) if zstd else self.source.read1(size)
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise OSError(" ".join(str(error).split())) from error
        self.place += len(data)
        return data

    def close(self) -> None:
        if not self.closed:
            self.source.close()
        super().close()


class Reader:
    """Keeps the compressed shard open that was read last, so that members read in order cost one pass; picklable."""

    def __init__(self) -> None:
        self.shard: Path | None = None
        self.file: io.BufferedReader | None = None
        self.last: tuple[Any, bytes] = (None, b"")

    def read(self, shard: Path, start: int, size: int) -> bytes:
        """`size` bytes from `start` on, or as many as there are. OSError where they cannot be unpacked."""
        wanted = (shard, start, size)
        if self.last[0] == wanted:  # a picture's bytes are read for its name, and then for its pixels
            return self.last[1]
        if self.file is None or shard != self.shard:
            self.close()
            self.shard, self.file = shard, open_shard(shard)
        try:
            self.file.seek(start)
            self.last = (wanted, self.file.read(size))
        except OSError:
            self.close()
            raise
        return self.last[1]

    def close(self) -> None:
        """Let go of the shard."""
        if self.file is not None:
            self.file.close()
        self.file, self.last = None, (None, b"")

    def __getstate__(self) -> dict[str, Any]:
        return vars(Reader())
