"""Every fault is listed with its row."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmrlhf.data import Pair, write_pairs
from mmrlhf.datasets.validate import ValidateConfig, validate
from mmrlhf.errors import UserError
from tests.datasets.files import jsonl, touch


def test_validate_lists_every_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path, "a.png", "b.png")
    (tmp_path / "c.png").write_bytes(b"not an image")
    good: dict[str, Any] = {"prompt": "p", "image_0": "a.png", "image_1": "b.png", "label_0": 1, "label_1": 0}
    bad: list[dict[str, Any]] = [
        {"label_0": None},
        {"image_1": "a.png"},
        {"image_1": "gone.png"},
        {"image_1": "c.png"},
        {"colour": 3},
    ]
    lines = [json.dumps(row) for row in [good, *(good | change for change in bad)]] + ["{"]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match="6 faults beside 1 usable judgements"):
        validate(ValidateConfig(tmp_path / "pairs.jsonl"))
    printed = capsys.readouterr().out
    for number, words in enumerate(
        ("label_0 got None", "with itself", "no file", "cannot be decoded", "unknown column", "not JSON"), start=2
    ):
        assert any(f"row {number}" in line and words in line for line in printed.splitlines()), (number, words)


def test_a_good_file_has_no_fault_but_a_note_on_its_annotators(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    touch(tmp_path, "a.png", "b.png")
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    ann, bob = Pair("p", a, b, 1.0, annotator="ann"), Pair("p", a, b, 0.0, annotator="bob")
    notes = {
        "one annotator only (ann)": [ann],
        "no annotator is named": [Pair("p", a, b, 1.0)],
        "": [ann, bob],
    }
    for note, pairs in notes.items():
        write_pairs(pairs, tmp_path / "good.jsonl")
        assert validate(ValidateConfig(tmp_path / "good.jsonl")) == []
        printed = capsys.readouterr().out
        assert f"{len(pairs)} judgements without a fault" in printed
        assert (f"note: {note}: agreement cannot be measured" in printed) if note else ("note" not in printed)


def test_validate_lists_the_faults_of_outcomes_and_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path, "a.png", "b.png")
    image = {"prompt": "p", "image": "a.png"}
    images = {"prompt": "p", "images": ["a.png", "b.png"]}
    outcomes: list[tuple[dict[str, Any], str]] = [
        (image | {"rating": float("nan")}, "rating got nan"),
        (image | {"safe": 1}, "safe got 1"),
        (images | {"ranks": [1, 1]}, "not all equal"),
        (images | {"best": 2}, "best got 2, allowed is 0 to 1"),
        (image | {"rating": 3, "stars": 3}, "unknown column stars"),
    ]
    answer = {"prompt": "p", "answer_0": "x", "answer_1": "y", "label_0": 1, "label_1": 0}
    answers: list[tuple[dict[str, Any], str]] = [
        (answer | {"answer_1": "x"}, "compares an answer with itself"),
        (answer | {"label_0": float("nan")}, "label_0 got nan"),
        (answer | {"image": "gone.png"}, "no file"),
        ({"prompt": "p"}, "lacks answer_0, answer_1, label_0, label_1"),
        (answer, "repeats"),
    ]
    good = {"outcomes": image | {"rating": 3}, "answers": answer}
    for name, rows in (("outcomes", outcomes), ("answers", answers)):
        file = jsonl([good[name], *(row for row, _ in rows)], tmp_path / f"{name}.jsonl")
        with pytest.raises(UserError, match="5 faults beside 1 usable judgements"):
            validate(ValidateConfig(file, name))  # type: ignore[arg-type]
        printed = capsys.readouterr().out.splitlines()
        for number, (_, words) in enumerate(rows, start=2):
            assert any(f"row {number}: " in line and words in line for line in printed), (name, number, printed)
