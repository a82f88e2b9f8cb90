"""Prompts for verl-omni's trainers, written and read again."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmrlhf.answers import AnswerPair, write_answer_pairs
from mmrlhf.data import Pair, write_pairs
from mmrlhf.datasets.export import ExportConfig, export
from mmrlhf.errors import UserError
from tests.datasets.files import touch
from tests.datasets.test_export import store_of

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def test_prompts_come_once_each_with_the_columns_that_the_trainers_read(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    write_pairs(
        [Pair("a fox", a, b, 1.0), Pair("a cat", a, b, 0.5), Pair("a fox", b, a, 0.0, criterion="fit")],
        tmp_path / "p.jsonl",
    )
    export(ExportConfig(tmp_path / "train.parquet", data=tmp_path / "p.jsonl", format="verl-omni"))
    table = pq.read_table(tmp_path / "train.parquet")
    assert {field.name: field.type for field in table.schema} == {
        "data_source": pa.string(),
        "prompt": MESSAGES,
        "negative_prompt": MESSAGES,
        "reward_model": pa.struct([("style", pa.string()), ("ground_truth", pa.string())]),
        "ability": pa.string(),
        "extra_info": pa.struct([("split", pa.string()), ("index", pa.int64()), ("raw_prompt", pa.string())]),
    }
    first, second = table.to_pylist()
    assert first == {
        "data_source": "mmrlhf",
        "prompt": [{"role": "user", "content": "a fox"}],
        "negative_prompt": [{"role": "user", "content": " "}],
        "reward_model": {"style": "model", "ground_truth": "a fox"},
        "ability": "preference_alignment",
        "extra_info": {"split": "train", "index": 0, "raw_prompt": "a fox"},
    }
    assert second["extra_info"] == {"split": "train", "index": 1, "raw_prompt": "a cat"}


def test_a_store_gives_its_prompts_too(tmp_path: Path) -> None:
    rows = export(ExportConfig(tmp_path / "x.parquet", store=str(store_of(tmp_path)), format="verl-omni"))
    assert len(rows) == 3 and pq.read_table(tmp_path / "x.parquet").num_rows == 1


def test_answers_are_refused(tmp_path: Path) -> None:
    write_answer_pairs([AnswerPair("p", "x", "y", 1.0)], tmp_path / "answers.jsonl")
    given: dict[str, Any] = {"data": tmp_path / "answers.jsonl", "format": "verl-omni"}
    with pytest.raises(UserError, match="judgement 1 of .* compares answers, not images: .*--format than verl-omni"):
        export(ExportConfig(tmp_path / "x.parquet", **given))
    assert not (tmp_path / "x.parquet").exists()
