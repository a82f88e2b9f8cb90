"""HPD v2: votes and rankings."""

from pathlib import Path

import pytest

from mmrlhf.data import Pair, read_pairs
from mmrlhf.datasets import reader
from mmrlhf.datasets.importing import ImportConfig, import_data
from mmrlhf.datasets.rows import Fault, Row
from mmrlhf.outcomes import Ranking, read_outcomes
from tests.datasets.files import json_file, touch


def test_votes_are_soft_labels_of_an_annotator(tmp_path: Path) -> None:
    touch(tmp_path / "train", "a.jpg", "b.jpg")
    train = json_file(
        [{"prompt": "p", "file_path": ["a.jpg", "b.jpg"], "human_preference": [1, 3], "user_hash": "h"}],
        tmp_path / "train.json",
    )
    (row,) = reader("hpd")(train, None)
    a, b = tmp_path / "train" / "a.jpg", tmp_path / "train" / "b.jpg"
    assert isinstance(row, Row) and row.judgement == Pair("p", a, b, 0.25, annotator="h")


def test_rankings_become_strict_pairs_or_stay_whole(tmp_path: Path) -> None:
    touch(tmp_path / "test", "c.jpg", "d.jpg", "e.jpg")
    test = json_file(
        [{"prompt": "q", "image_path": ["c.jpg", "d.jpg", "e.jpg"], "rank": [2, 1, 2], "raw_annotations": []}],
        tmp_path / "test.json",
    )
    assert import_data(ImportConfig("hpd", test, tmp_path / "pairs")) == 2
    pairs = read_pairs(tmp_path / "pairs" / "pairs.jsonl")
    assert [(p.image_0.name, p.image_1.name, p.label_0) for p in pairs] == [
        ("c.jpg", "d.jpg", 0.0),
        ("d.jpg", "e.jpg", 1.0),
    ]
    assert len({pair.group for pair in pairs}) == 1
    assert import_data(ImportConfig("hpd", test, tmp_path / "whole", rankings="keep")) == 1
    (ranking,) = read_outcomes(tmp_path / "whole" / "outcomes.jsonl")
    assert isinstance(ranking, Ranking) and ranking.ranks == (2, 1, 2)
    assert [image.name for image in ranking.images] == ["c.jpg", "d.jpg", "e.jpg"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"image_path": ["a.jpg", "b.jpg"], "rank": [1, 1]}, "all equal"),
        ({"file_path": ["a.jpg", "b.jpg"], "human_preference": [0, 0]}, "allowed are two images and a vote"),
        ({"file_path": ["a.jpg", "b.jpg"], "human_preference": [1, None]}, "human_preference got"),
        ({"file_path": ["a.jpg", "gone.jpg"], "human_preference": [1, 0]}, "no file"),
        ({"prompt": None, "file_path": ["a.jpg", "b.jpg"], "human_preference": [1, 0]}, "prompt got None"),
    ],
)
def test_a_bad_row_is_a_fault_with_its_row(row: dict, problem: str, tmp_path: Path) -> None:
    touch(tmp_path / "x", "a.jpg", "b.jpg")
    (fault,) = reader("hpd")(json_file([{"prompt": "p"} | row], tmp_path / "x.json"), None)
    assert isinstance(fault, Fault) and problem in fault.problem and fault.where.endswith("x.json row 1")
