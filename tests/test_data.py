"""Reading and writing comparisons and items: what goes in comes out, and each mistake is named with its row."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmrlhf.data import Item, Pair, read_items, read_pairs, read_prompts, split_by_prompt, write_pairs, write_text
from mmrlhf.errors import UserError

GOOD = {"prompt": "a cat", "image_0": "a.png", "image_1": "sub/b.png", "label_0": 1, "label_1": 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def write(folder: Path, *rows: Any, name: str = "pairs.jsonl") -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def test_rows_in_order_with_paths_from_the_files_folder(folder: Path) -> None:
    path = write(
        folder,
        GOOD,
        "",
        GOOD | {"label_0": 0.5, "label_1": 0.5, "user_id": 7},
        GOOD | {"has_label": False, "group": "g"},
    )
    first, second, third = read_pairs(path)
    assert first == Pair("a cat", folder / "a.png", folder / "sub" / "b.png", 1.0)
    assert second.label_0 == 0.5 and second.has_label and second.unit == "a cat"
    assert not third.has_label and third.unit == "g"


def test_half_a_character_is_refused_and_nothing_is_left(folder: Path) -> None:
    (folder / "pairs.jsonl").write_text(json.dumps(GOOD | {"prompt": "a\ud800b"}))
    with pytest.raises(UserError, match="half of a surrogate pair"):
        read_pairs(folder / "pairs.jsonl")
    with pytest.raises(UnicodeEncodeError):
        write_text("a\ud800b", folder / "new.txt")
    assert not list(folder.glob("new.txt*"))


def test_written_pairs_read_back_equal(folder: Path) -> None:
    pairs = [
        Pair('ein Bär, "quoted"\nnew line\u2028', folder / "a.png", folder / "sub" / "b.png", 0.25),
        Pair("", folder / "sub" / "b.png", folder / "a.png", 1.0, group="g", has_label=False),
    ]
    for name in ("out.jsonl", "new/out.jsonl"):
        write_pairs(pairs, folder / name)
        assert read_pairs(folder / name) == pairs
    assert "sub/b.png" in (folder / "out.jsonl").read_text()
    assert not list(folder.rglob("*.tmp"))


def test_absolute_paths_and_a_byte_order_mark(folder: Path) -> None:
    row = json.dumps(GOOD | {"image_0": str(folder / "a.png")})
    (folder / "pairs.jsonl").write_text(row, encoding="utf-8-sig")
    assert read_pairs(folder / "pairs.jsonl")[0].image_0 == folder / "a.png"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{oops", r"row 2 is not JSON .*: write"),
        ([1], r"row 2 is a list, not an object"),
        ({"prompt": "a"}, r"row 2 lacks image_0, image_1, label_0, label_1"),
        (GOOD | {"labels": 1}, r"row 2 has the unknown column labels: allowed are prompt, image_0"),
        (GOOD | {"prompt": 3}, r"row 2: prompt got 3, allowed is a text"),
        (GOOD | {"label_0": 2, "label_1": -1}, r"row 2: label_0 got 2, allowed is a number from 0 to 1"),
        (GOOD | {"label_0": float("nan")}, r"row 2: label_0 got nan, allowed is"),
        (GOOD | {"label_1": "0"}, r"row 2: label_1 got '0', allowed is"),
        (GOOD | {"label_0": True}, r"row 2: label_0 got True, allowed is"),
        (GOOD | {"label_0": None}, r"row 2: label_0 got None, allowed is"),
        (GOOD | {"label_1": 1}, r"row 2: label_0 1 and label_1 1 sum to 2, allowed is 1: write 1 and 0"),
        (GOOD | {"image_1": "a.png"}, r"row 2 compares a\.png with itself"),
        (GOOD | {"image_1": "sub/../a.png"}, r"row 2 compares a\.png with itself"),
        (GOOD | {"image_1": "c.png"}, r"row 2: no file .*c\.png \(image_1\): paths are relative to the file"),
        (GOOD | {"image_1": "sub"}, r"row 2: no file .*sub \(image_1\)"),
        (GOOD | {"image_1": None}, r"row 2: image_1 got None, allowed is the path"),
        (GOOD | {"has_label": "no"}, r"row 2: has_label got 'no'"),
    ],
)
def test_a_bad_row_is_named(folder: Path, row: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_pairs(write(folder, GOOD, row))


def test_files_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl \(No such file or directory\): give a file with"):
        read_pairs(folder / "none.jsonl")
    with pytest.raises(UserError, match="Is a directory"):
        read_pairs(folder)
    with pytest.raises(UserError, match=r"pairs\.jsonl is empty"):
        read_pairs(write(folder, "", " "))
    (folder / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_pairs(folder / "bytes.jsonl")


def test_items(folder: Path) -> None:
    rows = [{"prompt": "a", "image": "a.png"}, {"prompt": "b", "image": "sub/b.png", "score": None}]
    assert read_items(write(folder, *rows)) == [Item("a", folder / "a.png"), Item("b", folder / "sub" / "b.png")]
    with pytest.raises(UserError, match="row 1 lacks image"):
        read_items(write(folder, {"prompt": "a"}))
    with pytest.raises(UserError, match="row 1 has the unknown column file"):
        read_items(write(folder, {"prompt": "a", "image": "a.png", "file": 1}))


def test_prompts(folder: Path) -> None:
    (folder / "p.txt").write_text("a cat\n\n  ein Bär \r\n", encoding="utf-8")
    assert read_prompts(folder / "p.txt") == ["a cat", "ein Bär"]
    (folder / "p.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"no prompt in .*p\.txt"):
        read_prompts(folder / "p.txt")


def test_no_prompt_is_on_both_sides_of_a_split() -> None:
    pairs = [Pair(f"p{i % 10}", Path("a"), Path(f"{i}"), 1.0, group="twins" if i % 10 < 2 else "") for i in range(40)]
    rest, held_out = split_by_prompt(pairs, 0.3, seed=0)
    assert {p.unit for p in rest}.isdisjoint({p.unit for p in held_out})
    assert sorted([*rest, *held_out], key=pairs.index) == pairs
    assert len({p.unit for p in held_out}) == 3  # of 9: "twins" holds two prompts
    assert split_by_prompt(pairs, 0.3, seed=0) == (rest, held_out)
    assert any(split_by_prompt(pairs, 0.3, seed=seed) != (rest, held_out) for seed in range(1, 4))


def test_neither_side_of_a_split_is_empty() -> None:
    pairs = [Pair(p, Path("a"), Path("b"), 1.0) for p in "ab"]
    for fraction in (0.01, 0.99):
        assert [len(side) for side in split_by_prompt(pairs, fraction, seed=0)] == [1, 1]
    with pytest.raises(UserError, match="got 1 prompts to split"):
        split_by_prompt(pairs[:1], 0.5, seed=0)
    with pytest.raises(UserError, match="hold out got 1.5, allowed is between 0 and 1"):
        split_by_prompt(pairs, 1.5, seed=0)


def test_a_folder_is_no_file_to_write(folder: Path) -> None:
    with pytest.raises(UserError, match="is a folder: give the name of a file"):
        write_text("x", folder / "sub")
