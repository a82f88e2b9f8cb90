"""Compressed shards: the same pictures, metadata and choice as from plain ones, one pass in order, and what is cut off."""

import bz2
import gzip
import lzma
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mmrlhf.errors import UserError
from selection import compressed
from selection.compressed import OPENERS, Reader, Unpacked, open_shard
from selection.embed import Embedder, embed_files
from selection.pictures import list_pictures
from selection.webdataset import MOST_PICTURE, Member, read_shard
from tests.selection.test_webdataset import chosen, shards, write_tar

__all__ = ["shards"]  # a fixture


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return sink.getvalue().to_pybytes()


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".tar.bz2": lambda data: bz2.compress(data, 1),
    ".tar.xz": lzma.compress,
    ".tar.zst": zstd,
}


def packed(shards: Path, folder: Path, kind: str) -> Path:
    """The same shards, compressed."""
    folder.mkdir()
    for shard in sorted(shards.glob("*.tar")):
        (folder / (shard.stem + kind)).write_bytes(PACK[kind](shard.read_bytes()))
    return folder


def test_every_kind_is_tried() -> None:
    assert PACK.keys() == OPENERS.keys()


@pytest.mark.parametrize("kind", PACK)
def test_the_choice_and_the_metadata_are_those_of_plain_shards(
    kind: str, clip_folder: Path, shards: Path, tmp_path: Path
) -> None:
    folder, page = packed(shards, tmp_path / "packed", kind), tmp_path / "page.html"
    assert list_pictures(folder).columns == list_pictures(shards).columns
    plain = chosen(shards, clip_folder, where=("source == s1",))
    for source in (folder, folder / ("part-{000..002}" + kind)):
        found = chosen(source, clip_folder, where=("source == s1",), report=page)
        assert [found[name] for name in ("indices", "hashes", "gains", "unreadable")] == [
            plain[name] for name in ("indices", "hashes", "gains", "unreadable")
        ]
        assert page.read_text().count("<img") == 4
    for pick, other in zip(found["picks"], plain["picks"], strict=True):
        assert [pick[name] for name in ("member", "start", "size")] == [
            other[name] for name in ("member", "start", "size")
        ]
        with open_shard(Path(pick["shard"])) as file:
            file.seek(pick["start"])
            whole = Path(other["shard"]).read_bytes()
            assert file.read(pick["size"]) == whole[other["start"] : other["start"] + other["size"]]


def test_members_in_order_cost_one_pass_and_one_open_file(
    clip_folder: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = list_pictures(packed(shards, tmp_path / "packed", ".tar.gz")).pictures
    opened: list[Any] = []
    plain = OPENERS[".tar.gz"]

    def counted(path: Path) -> Any:
        opened.append(plain(path))
        return opened[-1]

    monkeypatch.setitem(compressed.OPENERS, ".tar.gz", counted)
    first = embed_files(listed, Embedder(str(clip_folder)), cache=tmp_path / "cache")
    assert len(opened) == 3 and [file.closed for file in opened] == [True, True, False]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npz")}
    again = embed_files(listed, Embedder(str(clip_folder)), cache=tmp_path / "cache")
    assert (again.embeddings == first.embeddings).all()
    assert kept and kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npz")}
    member = listed[0]
    assert isinstance(member, Member)
    assert pickle.loads(pickle.dumps(member)).read_bytes() == member.read_bytes()


@pytest.mark.parametrize("kind", PACK)
def test_any_place_can_be_read_again(kind: str, tmp_path: Path) -> None:
    data = bytes(range(256)) * 3000
    path = tmp_path / ("x" + kind)
    path.write_bytes(PACK[kind](data))
    reader = Reader()
    for start, size in ((5, 10), (700_000, 200_000), (0, 3), (768_000, 5), (1_000_000, 4), (70_000, 1)):
        assert reader.read(path, start, size) == data[start : start + size]
    reader.close()
    with open_shard(path) as file:
        assert file.read() == data


@pytest.mark.parametrize("kind", PACK)
def test_a_shard_that_is_cut_off_gives_what_is_whole(
    kind: str, clip_folder: Path, shards: Path, tmp_path: Path
) -> None:
    members = {f"{number:03}.png": (shards / "part-000.tar").read_bytes() for number in range(40)}
    members = {name: bytes(number ^ byte for byte in data) for number, (name, data) in enumerate(members.items())}
    picture = next(read.read_bytes() for read in list_pictures(shards).pictures if isinstance(read, Member))
    plain = write_tar(tmp_path / "plain.tar", {"000.png": picture, "000.txt": b"a cat"} | {
        name: data for name, data in members.items() if name != "000.png"
    })  # fmt: skip
    whole = PACK[kind](plain.read_bytes())
    shard = tmp_path / "cut" / ("x" + kind)
    shard.parent.mkdir()
    shard.write_bytes(whole[: len(whole) - len(whole) // 3])
    listed = list_pictures(shard)
    assert listed.columns == {"prompt": ["a cat"] + [None] * (len(listed.pictures) - 1)}
    assert 10 < len(listed.pictures) < 40
    assert list(listed.unreadable) == [str(shard)] and "is cut off, damaged" in listed.unreadable[str(shard)]
    result = chosen(shard, clip_folder, budget=1)
    assert result["rows"] == 1 and "cut off" in result["unreadable"][str(shard)]


@pytest.mark.parametrize("kind", PACK)
def test_what_was_damaged_or_is_none_is_told(kind: str, shards: Path, tmp_path: Path) -> None:
    folder = packed(shards, tmp_path / "packed", kind)
    for shard in folder.iterdir():
        shard.write_bytes(shard.read_bytes()[:8] + b"damaged!" * 100)
    with pytest.raises(UserError, match="no picture in 3 shards .*is cut off, damaged or not what its name says"):
        list_pictures(folder)
    (folder / "y.tar").write_bytes(PACK[kind]((shards / "part-000.tar").read_bytes()))  # compressed, and not named so
    assert "not what its name says" in read_shard(folder / "y.tar").unreadable[str(folder / "y.tar")]


def test_a_picture_that_grows_without_end_is_left_out(tmp_path: Path) -> None:
    import tarfile

    info = tarfile.TarInfo("a.png")
    info.size = MOST_PICTURE + 1
    path = tmp_path / "x.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(info.tobuf())
        for _ in range(MOST_PICTURE >> 20):
            file.write(bytes(1 << 20))
        file.write(bytes(512 + 1024))
    with pytest.raises(UserError, match="no picture in 1 shards .*of more than 268435456 bytes"):
        list_pictures(path)


def test_the_end_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "x.tgz").write_bytes(gzip.compress(b"1234"))
    with Unpacked(tmp_path / "x.tgz") as file, pytest.raises(OSError, match="the end of a compressed file"):
        file.seek(0, 2)
