"""Pairs of answers: written and read again equal, and refused where they are none."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmrlhf.answers import AnswerPair, read_answer_pairs, write_answer_pairs
from mmrlhf.errors import UserError

ROW: dict[str, Any] = {"prompt": "what is it?", "answer_0": "a cat", "answer_1": "a dog", "label_0": 1, "label_1": 0}


def test_written_and_read_again_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    pairs = [
        AnswerPair("q", "a", "b", 1.0),
        AnswerPair("q", "a\nü", "b", 0.25, tmp_path / "a.png", "g", False, "ann", "help", 0.5, True, False),
    ]
    write_answer_pairs(pairs, tmp_path / "answers.jsonl")
    assert read_answer_pairs(tmp_path / "answers.jsonl") == pairs
    assert pairs[0].unit == "q" and pairs[1].unit == "g"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer_1": "a cat"}, "row 1 compares an answer with itself"),
        ({"answer_0": " "}, "answer_0 got ' ', allowed is a text that is not empty"),
        ({"label_0": 0.5}, "sum to 0.5, allowed is 1"),
        ({"image": "nowhere.png"}, "no file .*nowhere.png"),
        ({"safe_0": 1}, "safe_0 got 1, allowed is true or false"),
        ({"margin": -1}, "margin got -1, allowed is a number, 0 or more"),
        ({"chosen": "x"}, "unknown column chosen: allowed are prompt, answer_0"),
    ],
)
def test_a_bad_row_is_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(ROW | change) + "\n")
    with pytest.raises(UserError, match=message):
        read_answer_pairs(tmp_path / "x.jsonl")
