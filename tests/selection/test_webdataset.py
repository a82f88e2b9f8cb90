"""Pictures in .tar shards: the same choice as from their files, their metadata, and shards that are damaged or hostile."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmrlhf.errors import UserError
from mmrlhf.images import content_hash, load_image
from selection.pictures import expand, larger_files, list_pictures
from selection.select import SelectConfig, select
from selection.webdataset import Member, read_shard


def write_tar(path: Path, members: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    """A shard with these members, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def shards(pictures: Path, tmp_path: Path) -> Path:
    """The twelve pictures in shards of five, with a prompt each and a source."""
    files = sorted(pictures.iterdir())
    for number in range(3):
        members: dict[str, bytes] = {}
        for path in files[5 * number : 5 * number + 5]:
            members[f"./{path.stem}.json"] = json.dumps({"source": f"s{int(path.stem) % 2}", "tags": ["a"]}).encode()
            members[f"./{path.name}"] = path.read_bytes()
            members[f"./{path.stem}.txt"] = f"a picture {int(path.stem) % 3}\n".encode()
            members[f"./{path.stem}.cls"] = b"1"
        write_tar(tmp_path / "shards" / f"part-{number:03}.tar", members)
    return tmp_path / "shards"


def chosen(images: Path, clip_folder: Path, **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"budget": 4, "out": images.parent / "out" / "chosen.json"} | options
    return select(SelectConfig(images=images, model=str(clip_folder), **given))


def test_the_choice_is_that_of_the_files(clip_folder: Path, pictures: Path, shards: Path, tmp_path: Path) -> None:
    plain, page = chosen(pictures, clip_folder), tmp_path / "page.html"
    for source in (shards, shards / "part-{000..002}.tar"):
        found = chosen(source, clip_folder, report=page)
        assert [found[name] for name in ("indices", "hashes", "gains")] == [
            plain[name] for name in ("indices", "hashes", "gains")
        ]
    assert found["unreadable"] == {} and page.read_text().count("<img") == 4
    for pick, path in zip(found["picks"], found["paths"], strict=True):
        assert path == str(shards / Path(pick["shard"]).name / f"{pick['index']:02}.png")
        assert pick["member"] == f"./{pick['index']:02}.png"
        with tarfile.open(pick["shard"]) as tar:
            file = tar.extractfile(pick["member"])
            assert file is not None
            whole = file.read()
        place = slice(pick["start"], pick["start"] + pick["size"])
        assert Path(pick["shard"]).read_bytes()[place] == whole == (pictures / Path(path).name).read_bytes()


def test_texts_and_objects_are_metadata(clip_folder: Path, shards: Path) -> None:
    listed = list_pictures(shards)
    assert listed.columns == {
        "source": [f"s{n % 2}" for n in range(12)],
        "prompt": [f"a picture {n % 3}" for n in range(12)],
    }
    result = chosen(shards, clip_folder, where=("source == s1",), group="prompt", most_per_group=2)
    assert len(result["indices"]) == 4 and all(index % 2 for index in result["indices"])
    assert max(sum(index % 3 == rest for index in result["indices"]) for rest in range(3)) == 2


def test_the_prompt_of_an_object_counts_and_gaps_are_told_as_missing(pictures: Path, tmp_path: Path) -> None:
    data = (pictures / "00.png").read_bytes()
    members = {
        "a/1.json": b'{"prompt": "of json", "n": 1, "x": null}', "a/1.txt": b"of txt", "a/1.png": data, "b/1.txt": b"other",
        "b/1.PNG": data, "b/1.seg.png": data, "b/2.png": data, ".hidden.png": data, "c/._1.png": data, "b/1.txt.gz": b"",
    }  # fmt: skip
    listed = list_pictures(write_tar(tmp_path / "x.tar", members))
    assert [str(picture).split("x.tar/")[1] for picture in listed.pictures] == [
        "a/1.png",
        "b/1.PNG",
        "b/1.seg.png",
        "b/2.png",
    ]
    assert listed.columns == {"prompt": ["of json", "other", "other", None], "n": [1, None, None, None]}


def test_metadata_of_a_table_by_the_names_in_the_shards(clip_folder: Path, shards: Path, tmp_path: Path) -> None:
    names = [f"part-{n // 5:03}.tar/{n:02}.png" for n in reversed(range(12))]
    (tmp_path / "m.csv").write_text("image,n\n" + "".join(f"{name},{name[-6:-4]}\n" for name in names))
    result = chosen(shards, clip_folder, metadata=tmp_path / "m.csv", where=("n >= 8",))
    assert sorted(result["indices"]) == [8, 9, 10, 11]


def test_what_was_embedded_before_a_stop_is_not_embedded_again(clip_folder: Path, pictures: Path, shards: Path) -> None:
    first = chosen(pictures, clip_folder)
    cache = pictures.parent / "out" / "chosen.embeddings"
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npz")}
    again = chosen(shards, clip_folder, already=pictures.parent / "out" / "chosen.json")
    assert files and {path: path.stat().st_mtime_ns for path in cache.rglob("*.npz")} == files
    assert again["already"] == first["indices"] and not set(again["hashes"]) & set(first["hashes"])


def test_pictures_beside_shards_come_first(pictures: Path, tmp_path: Path) -> None:
    data = (pictures / "00.png").read_bytes()
    write_tar(pictures / "deep" / "x.tar", {"1.png": data, "1.txt": b"a cat"})
    listed = list_pictures(pictures)
    assert [str(path) for path in listed.pictures[-2:]] == [
        str(pictures / "11.png"),
        str(pictures / "deep/x.tar/1.png"),
    ]
    assert listed.columns == {"prompt": [None] * 12 + ["a cat"]}


@pytest.mark.parametrize("kept", ["in a picture", "in a header", "before the end mark"])
def test_a_shard_that_is_cut_off_gives_what_is_whole(kept: str, clip_folder: Path, shards: Path) -> None:
    shard = shards / "part-001.tar"
    last = read_shard(shard).pictures[-1]
    assert isinstance(last, Member)
    end = {"in a picture": last.start + 30, "in a header": last.start - 300, "before the end mark": None}[kept]
    data = shard.read_bytes()
    shard.write_bytes(data[:end] if end is not None else data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512))
    result = chosen(shards, clip_folder)
    assert str(shard) in result["unreadable"] and "is cut off" in result["unreadable"][str(shard)]
    assert result["rows"] == (12 if kept == "before the end mark" else 11)
    assert (str(last) in result["unreadable"]) == (kept == "in a picture")


def test_members_that_are_no_picture_are_listed(clip_folder: Path, pictures: Path, shards: Path) -> None:
    data = (pictures / "00.png").read_bytes()
    members = {"a.png": b"text", "b.png": b"", "c.png": data, "c.json": b"[1]", "c.txt": b"\xff\xfe", "d.json": b"{"}
    result = chosen(write_tar(shards / "z.tar", members), clip_folder, budget=1)
    assert [Path(name).name for name in result["unreadable"]] == ["c.json", "c.txt", "d.json", "a.png", "b.png"]
    assert result["indices"] == [0] and result["picks"][0]["member"] == "c.png"


HOSTILE = [
    "../up.png",
    "/etc/up.png",
    "a/../../up.png",
    "a\\up.png",
    "b\nc/up.png",
    "line\nbreak.png",
    "half\udcff.png",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_left_out_and_nothing_is_unpacked(
    name: str, clip_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    data = (pictures / "00.png").read_bytes()
    format = tarfile.GNU_FORMAT if name.isascii() else tarfile.PAX_FORMAT
    shard = write_tar(tmp_path / "evil" / "x.tar", {name: data, "good.png": data, name[:-4] + ".txt": b"x"}, format)
    before = sorted(path for path in tmp_path.rglob("*"))
    result = chosen(shard, clip_folder, budget=1, out=tmp_path / "out" / "o.json", report=tmp_path / "out" / "o.html")
    assert result["rows"] == 1 and [Path(path).name for path in result["paths"]] == ["good.png"]
    assert len(result["unreadable"]) == 2 and all("leads out of" in why for why in result["unreadable"].values())
    new = {path for path in tmp_path.rglob("*") if "out" not in path.relative_to(tmp_path).parts}
    assert new == set(before) and not (tmp_path.parent / "up.png").exists()


def test_links_and_holes_are_not_followed(pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE):
            info = tarfile.TarInfo(f"{kind.decode()}.png")
            info.type, info.linkname = kind, str(pictures / "00.png")
            tar.addfile(info)
    with pytest.raises(UserError, match="no picture in 1 shards .*which is a link, a folder or a device"):
        list_pictures(path)


def test_a_size_below_zero_ends_the_shard(pictures: Path, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.png": (pictures / "00.png").read_bytes(), "b.png": b"1234"})
    data = bytearray(path.read_bytes())
    at = data.index(b"b.png")
    data[at + 124 : at + 136] = b"\xff" * 10 + (-2048 & 0xFFFF).to_bytes(2, "big")
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = f"{sum(data[at : at + 512]):06o}\0 ".encode()
    path.write_bytes(bytes(data))
    listed = list_pictures(path)
    assert [Path(str(picture)).name for picture in listed.pictures] == ["a.png"] and list(listed.unreadable) == [
        str(path)
    ]


@pytest.mark.parametrize("data", [b"", b"text", b"\x1f\x8b" + bytes(600), os.urandom(2048)])
def test_what_is_no_tar_is_told(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(UserError, match="no picture in 1 shards .*is cut off, damaged or not what its name says"):
        list_pictures(tmp_path)


def test_of_equal_names_the_last_counts(pictures: Path, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.png": b"old"})
    with tarfile.open(path, "a") as tar:
        tar.add(pictures / "00.png", "a.png")
    (picture,) = list_pictures(path).pictures
    assert isinstance(picture, Member) and content_hash(picture.read_bytes()) == content_hash(
        (pictures / "00.png").read_bytes()
    )
    np.testing.assert_array_equal(picture.pixels(32).numpy(), load_image(pictures / "00.png", 32).numpy())


def test_braces_name_shards(tmp_path: Path) -> None:
    assert list(expand("a-{08..11}-{x,y}.tar")) == [f"a-{n:02}-{c}.tar" for n in range(8, 12) for c in "xy"]
    assert list(expand("{8..10}")) == ["8", "9", "10"] and list(expand("plain")) == ["plain"]
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", {})
    assert larger_files(tmp_path / "{0..1}.tar") == larger_files(tmp_path) == [tmp_path / "0.tar", tmp_path / "1.tar"]
    with pytest.raises(UserError, match="no shard .*2.tar: give a .tar or parquet file"):
        larger_files(tmp_path / "{0..999999999999}.tar")
    for wrong in ("{x}", "{3..1}", "{}"):
        with pytest.raises(UserError, match="cannot read .* in .*allowed are"):
            larger_files(tmp_path / f"{wrong}.tar")
    (tmp_path / "{a}.tar").write_bytes(b"")
    assert larger_files(tmp_path / "{a}.tar") == [tmp_path / "{a}.tar"]


def test_a_budget_beyond_the_pictures_is_told(clip_folder: Path, shards: Path) -> None:
    with pytest.raises(UserError, match="--budget got 13, allowed is 1 to 12"):
        chosen(shards, clip_folder, budget=13)
