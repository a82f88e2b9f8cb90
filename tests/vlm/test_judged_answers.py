"""Judged answers are read whole, from numbers and from marks, and bad rows are told by their line."""

from pathlib import Path
from typing import Any

import pytest

from mmrlhf.errors import UserError
from mmrlhf.rewards.language.inputs import Row
from tests.vlm.helpers import pictures, write_rows
from vlm.answer_rewards import Judgement, SpanReward
from vlm.judged_answers import Judged, read_judged, told_judged

ANSWER = "A cat sleeps. A dog barks."


def test_numbers(tmp_path: Path) -> None:
    (name,) = pictures(tmp_path, 1)
    rows: list[dict[str, Any]] = [
        {"prompt": "What?", "image": name, "answer": "A cat.", "reward": 2}, {"prompt": "Why?", "answer": "So.", "reward": -0.5}
    ]  # fmt: skip
    found = read_judged(write_rows(rows, tmp_path / "judged.jsonl"))
    assert found == [
        Judged(Row("What?", "A cat.", tmp_path / name), Judgement((), 2.0)), Judged(Row("Why?", "So."), Judgement((), -0.5))
    ]  # fmt: skip
    assert found[0].unit != found[1].unit == "Why?\n"
    assert told_judged(found) != told_judged([found[0], found[1]._replace(judgement=Judgement((), 0.5))])


def test_marks(tmp_path: Path) -> None:
    segments = [{"start": 14, "end": 26, "tag": "misleading", "correction": ""}, {"start": 2, "end": 5, "score": 0.25}]
    row = {"prompt": "What?", "answer": ANSWER, "segments": segments}
    file = write_rows([row, {"prompt": "Why?", "answer": "So.", "segments": []}], tmp_path / "segments.jsonl")
    first, second = read_judged(file)
    assert first == Judged(Row("What?", ANSWER), Judgement((SpanReward(2, 5, 0.25), SpanReward(14, 26, -1.0))))
    assert second.judgement == Judgement(())
    first, second = read_judged(file, unmarked_correct=True)
    assert first.judgement.spans == ((0, 1, 1.0), (2, 5, 0.25), (6, 13, 1.0), (14, 26, -1.0))
    assert second.judgement.total == 1


def test_bad_rows_are_told(tmp_path: Path) -> None:
    good: dict[str, Any] = {"prompt": "What?", "answer": "So.", "reward": 1.0}
    for change, words in (
        ({"reward": "much"}, "row 2: reward got 'much', allowed is a finite number"),
        ({"reward": True}, "row 2: reward got True, allowed is a finite number"),
        ({"reward": float("nan")}, "row 2: reward got nan, allowed is a finite number"),
        ({"reward": 10**400}, "row 2: reward got 1000.*, allowed is a finite number"),
        ({"answer": " "}, "row 2: answer got ' ', allowed is a text that is not empty"),
        ({"image": "gone.png"}, "row 2: no file .*gone.png"),
        ({"rating": 1}, "row 2 has the unknown column rating"),
    ):
        with pytest.raises(UserError, match=words):
            read_judged(write_rows([good, good | change], tmp_path / "bad.jsonl"))
    with pytest.raises(UserError, match="row 1 lacks reward"):
        read_judged(write_rows([{"prompt": "What?", "answer": "So."}], tmp_path / "bad.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="empty.jsonl is empty"):
        read_judged(tmp_path / "empty.jsonl")
    with pytest.raises(UserError, match="cannot read .*none.jsonl"):
        read_judged(tmp_path / "none.jsonl")
    steps = {"prompt": "What?", "steps": 4, "segments": [{"start": 0, "end": 2, "tag": "correct"}]}
    with pytest.raises(UserError, match="is of steps, allowed are answers"):
        read_judged(write_rows([steps], tmp_path / "steps.jsonl"))
