"""Importing: faults refused or left out, kills, and sources that are none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmrlhf.datasets import READERS, WRITERS, Format, WrittenFormat
from mmrlhf.datasets.importing import ImportConfig, import_data
from mmrlhf.datasets.pickapic import REQUIRED
from mmrlhf.errors import UserError
from tests.datasets.files import json_file, jsonl, parquet, pickapic_row, picture, touch


def test_the_dicts_and_the_options_name_the_same_formats() -> None:
    assert set(READERS) == set(get_args(Format)) and set(WRITERS) == set(get_args(WrittenFormat))
    assert set(WRITERS) - set(READERS) == {"verl-omni"}  # its files hold prompts, and no judgement


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"label_0": float("nan")}, "label_0 and label_1 got nan"),
        ({"label_0": 0.7}, "of sum 1"),
        ({"caption": None}, "caption got None"),
        ({"image_1_uid": "u1"}, "compares image u1 with itself"),
        ({"jpg_1": b"no picture"}, "image 1 cannot be decoded"),
        ({"jpg_0": picture(1)[:-60]}, "image 0 cannot be decoded"),
        ({"jpg_1": picture(1)}, "compares an image with itself"),
    ],
)
def test_a_bad_row_is_named_refused_or_left_out(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    rows = [pickapic_row(4, 5, 1.0), pickapic_row(1, 2, 1.0, **changes)]
    source = parquet(rows, tmp_path / "data.parquet")
    with pytest.raises(UserError, match=f"row 2: .*{problem}"):
        import_data(ImportConfig("pickapic", source, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["data.parquet"]
    assert import_data(ImportConfig("pickapic", source, tmp_path / "out", on_fault="skip")) == 1


def test_an_import_that_was_killed_goes_on_with_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = parquet([pickapic_row(1, 2, 1.0), pickapic_row(2, 3, 1.0)], tmp_path / "data.parquet")
    config = ImportConfig("pickapic", source, tmp_path / "out")
    with monkeypatch.context() as context:
        context.setattr("mmrlhf.datasets.importing.place", stop)
        with pytest.raises(KeyboardInterrupt):
            import_data(config)
    assert len(list((tmp_path / "out.partial" / "images").iterdir())) == 3 and not (tmp_path / "out").exists()
    assert import_data(config) == 2 and not (tmp_path / "out.partial").exists()


def stop(*_: Any) -> None:
    raise KeyboardInterrupt


def no_source(folder: Path) -> Path:
    return folder / "nowhere"


def empty_array(folder: Path) -> Path:
    return json_file([], folder / "r.json")


def no_array(folder: Path) -> Path:
    (folder / "r.json").write_text('[{"id": 1, ')
    return folder / "r.json"


def list_of_texts(folder: Path) -> Path:
    return json_file(["a"], folder / "r.json")


def no_parquet(folder: Path) -> Path:
    (folder / "x.parquet").write_bytes(b"PAR1 but no more")
    return folder / "x.parquet"


def other_columns(folder: Path) -> Path:
    return parquet([{"caption": "x"}], folder / "x.parquet")


def no_row(folder: Path) -> Path:
    schema = pa.schema([(name, pa.string()) for name in REQUIRED])
    pq.write_table(schema.empty_table(), folder / "x.parquet")
    return folder / "x.parquet"


def cut_off(folder: Path) -> Path:
    start = "\n\nHuman: q\n\nAssistant: "
    file = jsonl([{"chosen": f"{start}{i}", "rejected": f"{start}x"} for i in range(99)], folder / "x.jsonl.gz")
    file.write_bytes(file.read_bytes()[:-20])
    return file


def empty(folder: Path) -> Path:
    (folder / "x.jsonl").write_text("\n")
    return folder / "x.jsonl"


def no_text(folder: Path) -> Path:
    (folder / "x.jsonl").write_bytes(b'{"chosen": "\xff"}\n')
    return folder / "x.jsonl"


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("imagereward", no_source, "cannot read .*No such file"),
        ("imagereward", empty_array, "holds no row"),
        ("imagereward", no_array, "is not a JSON array"),
        ("imagereward", list_of_texts, "row 1: is a str, allowed is an object"),
        ("hpd", no_array, "is not a JSON array"),
        ("pickapic", no_source, "cannot read .*No such file"),
        ("pickapic", Path, "no parquet file in"),
        ("pickapic", no_parquet, "is not a readable parquet file"),
        ("pickapic", other_columns, "lacks image_0_uid, image_1_uid, label_0, label_1"),
        ("pickapic", no_row, "holds no row"),
        ("rlhfv", other_columns, "has none of the columns text, question"),
        ("hh", cut_off, "cannot read .*end-of-stream"),
        ("hh", empty, "is empty"),
        ("hh", no_text, "row 1: is not UTF-8 text"),
        ("pairs", no_source, "cannot read"),
        ("folder", Path, "has neither a metadata.jsonl nor the folders"),
    ],
)
def test_a_source_that_is_none_is_one_line(
    name: Any, make: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        import_data(ImportConfig(name, make(tmp_path), tmp_path / "out"))
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "out/a.png")
    with pytest.raises(UserError, match="already holds files"):
        import_data(ImportConfig("pickapic", tmp_path / "x.parquet", tmp_path / "out"))
