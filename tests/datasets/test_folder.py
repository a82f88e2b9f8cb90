"""Folders of images: metadata.jsonl, and chosen beside rejected."""

from pathlib import Path
from typing import Any

import pytest

from mmrlhf.data import Pair, read_pairs
from mmrlhf.datasets import reader
from mmrlhf.datasets.importing import ImportConfig, import_data
from mmrlhf.datasets.rows import Fault, Row
from mmrlhf.outcomes import Rating, read_outcomes
from tests.datasets.files import jsonl, touch


def test_metadata_holds_ratings_and_pairs(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.png", "sub/b.png")
    a, b = tmp_path / "in" / "a.png", tmp_path / "in" / "sub" / "b.png"
    rows = [
        {"file_name": "a.png", "text": "p", "rating": 4, "annotator": "ann", "colour": "red"},
        {"file_name": "a.png", "caption": "p", "rating": 2.0, "annotator": "bob", "criterion": "fit"},
        {"file_name": "sub/b.png", "prompt": "p", "rating": 7, "levels": 10},
        {"chosen_file_name": "sub/b.png", "rejected_file_name": "a.png", "prompt": "p"},
    ]
    jsonl(rows, tmp_path / "in" / "metadata.jsonl")
    assert import_data(ImportConfig("folder", tmp_path / "in", tmp_path / "out")) == 4
    assert read_outcomes(tmp_path / "out" / "outcomes.jsonl") == [
        Rating("p", a, 4, annotator="ann"),
        Rating("p", a, 2, annotator="bob", criterion="fit"),
        Rating("p", b, 7, 10),
        Pair("p", b, a, 1.0),
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"file_name": "a.png", "text": "p"}, "has no rating and no chosen_file_name"),
        ({"file_name": "a.png", "text": "p", "rating": 3.5}, "rating got 3.5 of 5 levels"),
        ({"file_name": "a.png", "text": "p", "rating": 6}, "rating got 6 of 5 levels"),
        ({"file_name": "a.png", "rating": 3}, "prompt got None"),
        ({"file_name": "gone.png", "text": "p", "rating": 3}, "no file"),
        ({"text": "p", "rating": 3}, "file_name got None"),
        ({"chosen_file_name": "a.png", "text": "p"}, "rejected_file_name got None"),
        ({"chosen_file_name": "a.png", "rejected_file_name": "gone.png", "text": "p"}, "no file"),
    ],
)
def test_a_bad_row_is_a_fault_with_its_row(row: dict[str, Any], problem: str, tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    jsonl([{"file_name": "a.png", "text": "p", "rating": 1}, row], tmp_path / "metadata.jsonl")
    rows = list(reader("folder")(tmp_path, None))
    assert isinstance(rows[0], Row) and isinstance(rows[1], Fault)
    assert problem in rows[1].problem and rows[1].where.endswith("row 2")


def test_chosen_beside_rejected(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    touch(folder, "chosen/1.png", "rejected/1.jpg", "chosen/x/2.png", "rejected/x/2.png")
    (folder / "chosen" / "1.txt").write_text("a fox\n")
    (folder / "rejected" / "x" / "2.txt").write_text("a cat")
    assert import_data(ImportConfig("folder", folder, tmp_path / "out")) == 2
    assert read_pairs(tmp_path / "out" / "pairs.jsonl") == [
        Pair("a fox", folder / "chosen" / "1.png", folder / "rejected" / "1.jpg", 1.0),
        Pair("a cat", folder / "chosen" / "x" / "2.png", folder / "rejected" / "x" / "2.png", 1.0),
    ]


def test_what_has_no_partner_or_no_prompt_is_a_fault(tmp_path: Path) -> None:
    touch(tmp_path, "chosen/1.png", "chosen/2.png", "rejected/2.png", "rejected/3.png")
    faults = [(Path(f.where).name, f.problem) for f in reader("folder")(tmp_path, None) if isinstance(f, Fault)]
    assert [name for name, _ in faults] == ["1.png", "2.png", "3.png"]
    for (_, problem), words in zip(faults, ("no image 1 in", "no prompt in", "no image 3 in"), strict=True):
        assert words in problem
