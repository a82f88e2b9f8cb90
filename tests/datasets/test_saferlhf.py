"""PKU-SafeRLHF: two criteria a row, and the flags."""

from pathlib import Path
from typing import Any

import pytest

from mmrlhf.answers import AnswerPair, read_answer_pairs
from mmrlhf.datasets import reader
from mmrlhf.datasets.importing import ImportConfig, import_data
from mmrlhf.datasets.rows import Fault, Row
from tests.datasets.files import jsonl, parquet

ROW: dict[str, Any] = {
    "prompt": "p", "response_0": "a", "response_1": "b", "is_response_0_safe": False, "is_response_1_safe": True,
    "better_response_id": 0, "safer_response_id": 1, "prompt_source": "x",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_row_is_a_pair_for_each_criterion(kind: str, tmp_path: Path) -> None:
    rows = [ROW, ROW | {"prompt": "q", "better_response_id": 1, "safer_response_id": -1, "is_response_0_safe": None}]
    source = (jsonl if kind == "jsonl" else parquet)(rows, tmp_path / f"x.{kind}")
    assert import_data(ImportConfig("saferlhf", source, tmp_path / "out")) == 3
    assert read_answer_pairs(tmp_path / "out" / "answers.jsonl") == [
        AnswerPair("p", "a", "b", 1.0, safe_0=False, safe_1=True),
        AnswerPair("p", "a", "b", 0.0, criterion="safety", safe_0=False, safe_1=True),
        AnswerPair("q", "a", "b", 0.0, safe_0=None, safe_1=True),
    ]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"response_1": "a "}, "compares an answer with itself"),
        ({"response_1": ""}, "response_1 got ''"),
        ({"is_response_0_safe": "yes"}, "is_response_0_safe got 'yes', allowed is true or false"),
        ({"better_response_id": 2}, "better_response_id got 2, allowed are 0 and 1"),
        ({"better_response_id": True}, "better_response_id got True"),
        ({"safer_response_id": float("nan")}, "safer_response_id got nan"),
        ({"better_response_id": None, "safer_response_id": -1}, "has neither better_response_id nor safer_response_id"),
    ],
)
def test_a_bad_row_is_a_fault_with_its_row(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    rows = list(reader("saferlhf")(jsonl([ROW, ROW | change], tmp_path / "x.jsonl"), None))
    assert [type(found) for found in rows] == [Row, Row, Fault]
    assert isinstance(rows[2], Fault) and problem in rows[2].problem and rows[2].where.endswith("row 2")


def test_beavertails_rows_of_one_answer_are_faults(tmp_path: Path) -> None:
    row = {"prompt": "p", "response": "a", "category": {"animal_abuse": False}, "is_safe": True}
    for source in (jsonl([row], tmp_path / "x.jsonl"), parquet([row], tmp_path / "x.parquet")):
        (fault,) = reader("saferlhf")(source, None)
        assert isinstance(fault, Fault) and "holds no two answers: give rows with response_0" in fault.problem
