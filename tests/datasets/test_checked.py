"""Rows that repeat or contradict another."""

from pathlib import Path
from typing import Any

import pytest

from mmrlhf.datasets.checked import checked
from mmrlhf.datasets.rows import Fault
from tests.datasets.files import jsonl, touch


def pair(first: str, second: str, label: float, **more: Any) -> dict[str, Any]:
    return {"prompt": "p", "image_0": first, "image_1": second, "label_0": label, "label_1": 1 - label, **more}


def rating(value: int, **more: Any) -> dict[str, Any]:
    return {"prompt": "p", "image": "a.png", "rating": value, **more}


AB, ANN, BOB = pair("a.png", "b.png", 1), {"annotator": "ann"}, {"annotator": "bob"}


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([AB, AB], "repeats {} row 1; if two people said it, name them"),
        ([AB, pair("b.png", "a.png", 1)], "contradicts {} row 1"),
        ([AB | ANN, pair("a.png", "b.png", 0) | ANN], "contradicts {} row 1, an answer to the same question"),
        ([AB | ANN, AB | ANN], "repeats {} row 1"),
        ([rating(3) | ANN, rating(4) | ANN], "contradicts {} row 1"),
        ([rating(3) | ANN, rating(3) | ANN], "repeats {} row 1"),
        # several people, another question, an order that agrees, a tie: no faults
        ([AB | ANN, AB | BOB], ""),
        ([AB | ANN, pair("b.png", "a.png", 1) | BOB], ""),
        ([AB, pair("b.png", "a.png", 0)], ""),
        ([AB, pair("a.png", "b.png", 0.5)], ""),
        ([AB, pair("a.png", "b.png", 0, criterion="fit")], ""),
        ([AB, pair("a.png", "b.png", 0, has_label=False)], ""),
        ([AB, pair("a.png", "b.png", 0) | {"prompt": "q"}], ""),
        ([rating(3), rating(3), rating(4)], ""),
    ],
)
def test_repeats_and_contradictions(rows: list[dict[str, Any]], problem: str, tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    file = jsonl(rows, tmp_path / "x.jsonl")
    faults = [row for row in checked("outcomes", file, None) if isinstance(row, Fault)]
    if problem:
        assert len(faults) == 1 and faults[0].where == f"{file} row 2"
        assert problem.format(file) in faults[0].problem
    else:
        assert faults == []


def test_answers_contradict_each_other_too(tmp_path: Path) -> None:
    row = {"prompt": "p", "answer_0": "x", "answer_1": "y", "label_0": 1, "label_1": 0}
    file = jsonl([row, row | {"label_0": 0, "label_1": 1}], tmp_path / "x.jsonl")
    faults = [row for row in checked("answers", file, None) if isinstance(row, Fault)]
    assert len(faults) == 1 and "contradicts" in faults[0].problem


def test_a_ranking_with_an_image_that_is_none_is_a_fault(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    (tmp_path / "c.png").write_bytes(b"no image")
    file = jsonl([{"prompt": "p", "images": ["a.png", "b.png", "c.png"], "ranks": [1, 2, 3]}], tmp_path / "x.jsonl")
    (fault,) = checked("outcomes", file, None)
    assert isinstance(fault, Fault) and fault.problem == "image 2 cannot be decoded (no image)"
