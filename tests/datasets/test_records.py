"""Tables row by row: packed or not, an array or lines, and never read whole."""

import json
import lzma
from pathlib import Path

import pytest

from mmrlhf.datasets.records import ROWS_AT_ONCE, records
from mmrlhf.datasets.rows import BadRow
from tests.datasets.files import json_file, jsonl, parquet

ROWS = [{"a": number, "b": "x"} for number in range(2 * ROWS_AT_ONCE + 1)]


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.array.json", "x.jsonl.xz", "x.parquet"])
def test_every_kind_of_file_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if name == "x.jsonl.xz":
        file.write_bytes(lzma.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    else:
        {"x.array.json": json_file, "x.parquet": parquet}.get(name, jsonl)(ROWS, file)
    assert list(records(file, ("a", "b"))) == [(f"{file} row {n}", row) for n, row in enumerate(ROWS, start=1)]


def test_only_the_columns_in_use_are_read_from_parquet(tmp_path: Path) -> None:
    file = parquet(ROWS, tmp_path / "x.parquet")
    assert [row for _, row in records(file, ("a",), ("c",))][:2] == [{"a": 0}, {"a": 1}]


def test_a_folder_is_its_parquet_files_in_order(tmp_path: Path) -> None:
    parquet(ROWS[2:4], tmp_path / "train-00001.parquet")
    parquet(ROWS[:2], tmp_path / "train-00000.parquet")
    found = list(records(tmp_path, ("a",)))
    assert [row for _, row in found] == [{"a": number} for number in range(4)]
    assert found[2][0] == f"{tmp_path / 'train-00001.parquet'} row 1"


def test_lines_that_are_no_objects_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n[1]\n{"b": 1}\n{"a": \n{"a": "\xff"}\n' + b"[" * 99999)
    found = list(records(tmp_path / "x.jsonl", ("a",)))
    assert found[0][1] == {"a": 1} and [where.rpartition(" ")[2] for where, _ in found] == list("134567")
    problems = [str(row) for _, row in found[1:] if isinstance(row, BadRow)]
    for problem, words in zip(problems, ("is a list", "lacks a", "not JSON", "not UTF-8", "not JSON"), strict=True):
        assert words in problem


def test_an_array_is_not_read_before_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(ROWS * 300)[:-1])  # the bracket at the end is missing
    found = records(tmp_path / "x.json", ("a",))
    assert next(found)[1] == ROWS[0]
