"""Anthropic's HH: dialogues as they are, split letter by letter."""

from pathlib import Path

import pytest

from mmrlhf.answers import AnswerPair, read_answer_pairs
from mmrlhf.datasets import reader
from mmrlhf.datasets.importing import ImportConfig, import_data
from mmrlhf.datasets.rows import Fault, Row
from tests.datasets.files import jsonl

START = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: What is 1+1?\n\nAssistant:"


def test_dialogues_become_pairs_that_spell_them_again(tmp_path: Path) -> None:
    rows = [{"chosen": f"{START} It is 2.\n", "rejected": f"{START} Ü 3"}]
    source = jsonl(rows, tmp_path / "train.jsonl.gz")
    assert import_data(ImportConfig("hh", source, tmp_path / "out")) == 1
    (pair,) = read_answer_pairs(tmp_path / "out" / "answers.jsonl")
    assert pair == AnswerPair(START, " It is 2.\n", " Ü 3", 1.0)
    assert not (tmp_path / "out" / "images").exists() and not (tmp_path / "out" / "segments.jsonl").exists()


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"chosen": f"{START} a", "rejected": f"\n\nHuman: other{START} a"}, "differ before the last answer"),
        (
            {"chosen": f"{START} a", "rejected": f"{START} b\n\nHuman: c\n\nAssistant: d"},
            "differ before the last answer",
        ),
        ({"chosen": f"{START} a", "rejected": f"{START}  "}, "has an empty answer"),
        ({"chosen": f"{START} a", "rejected": f"{START} a "}, "compares an answer with itself"),
        ({"chosen": f"{START} a", "rejected": "b"}, "has no turn of the assistant in 'b'"),
        ({"chosen": f"{START} a", "rejected": 3}, "rejected got 3"),
        ({"chosen": f"{START} a"}, "lacks rejected"),
        (["a"], "is a list, allowed is an object"),
    ],
)
def test_a_bad_row_is_a_fault_with_its_row(row: object, problem: str, tmp_path: Path) -> None:
    good = {"chosen": f"{START} a", "rejected": f"{START} b"}
    rows = list(reader("hh")(jsonl([good, row, good], tmp_path / "x.jsonl"), None))
    assert [type(found) for found in rows] == [Row, Fault, Row]
    assert isinstance(rows[1], Fault) and problem in rows[1].problem and rows[1].where.endswith("row 2")
