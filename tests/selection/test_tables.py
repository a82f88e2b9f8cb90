"""Metadata by column from each kind of file, alike; and which row belongs to which image."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmrlhf.errors import UserError
from selection.tables import check_length, of_images, read_columns

ROWS: dict[str, list[Any]] = {"name": ["a, b", "c"], "size": [1, None], "sharp": [0.5, 2.0], "good": [True, False]}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_every_kind_of_file_gives_the_same(tmp_path: Path) -> None:
    lines = '{"name": "a, b", "size": 1, "sharp": 0.5, "good": true}\n\n{"name": "c", "sharp": 2.0, "good": false}\n'
    assert read_columns(write(tmp_path / "m.jsonl", lines)) == ROWS
    table = '\ufeffname,size,sharp,good\n"a, b",1,0.5,true\nc,,2.0,False\n'
    assert read_columns(write(tmp_path / "m.csv", table)) == ROWS
    pq.write_table(pa.table(ROWS | {"embedding": [[1.0], [2.0]]}), tmp_path / "m.parquet")
    assert read_columns(tmp_path / "m.parquet") == ROWS


def test_a_csv_column_with_one_text_is_text_and_nan_is_missing(tmp_path: Path) -> None:
    columns = read_columns(write(tmp_path / "m.csv", "a,b,c,d\n1,nan,,inf\nx,2,,1\n"))
    assert columns["a"] == ["1", "x"] and columns["c"] == [None, None] and columns["d"] == ["inf", "1"]
    assert math.isnan(columns["b"][0]) and columns["b"][1] == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.txt", "a", "its name ends in '.txt', allowed are .jsonl, .csv, .parquet"),
        ("m.jsonl", '{"a": 1}\n[1]\n', "row 2 is a list, allowed is an object"),
        ("m.jsonl", '{"a": 1}\n{"a"\n', "row 2 is not JSON"),
        ("m.jsonl", "\n", "hold no row"),
        ("m.csv", "", "hold no row"),
        ("m.csv", "a,b\n", "hold no row"),
        ("m.csv", "a,b\n1\n", "row 1 has 1 values, allowed are 2, as the header has"),
        ("m.csv", "a,a\n1,2\n", "has the column 'a' twice"),
        ("m.csv", 'a\n"b\n', "is not CSV"),
        ("m.parquet", "PAR1", "cannot read the metadata"),
    ],
)
def test_faults_are_told(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_columns(write(tmp_path / name, text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name in ("none.csv", "none.parquet"):
        with pytest.raises(UserError, match="cannot read the metadata .*No such file"):
            read_columns(tmp_path / name)
    (tmp_path / "m.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_columns(tmp_path / "m.csv")


def test_a_wrong_length_is_told() -> None:
    with pytest.raises(UserError, match="m.csv has 2 rows for 3 rows of the embeddings"):
        check_length(ROWS, 3, Path("m.csv"))


def test_images_are_found_by_name_or_by_place(tmp_path: Path) -> None:
    folder, table = tmp_path / "pics", tmp_path / "m.csv"
    listed = [folder / name for name in ("a.png", "b.png", "c.png")]
    used = [listed[0], listed[2]]  # b cannot be read
    assert of_images({"x": [1, 2, 3]}, listed, used, folder, table) == {"x": [1, 3]}
    for start in ("pics/", ""):  # from the file, or in the folder
        names = [f"{start}{name}" for name in ("c.png", "a.png", "other.png")]
        for column in ("image", "file_name"):
            assert of_images({column: names, "x": [3, 1, 9]}, listed, used, folder, table)["x"] == [1, 3]
    with pytest.raises(UserError, match="no row whose image is .*c.png"):
        of_images({"image": ["a.png"]}, listed, used, folder, table)
    with pytest.raises(UserError, match="has 2 rows for 3 rows"):
        of_images({"x": [1, 3]}, listed, used, folder, table)
