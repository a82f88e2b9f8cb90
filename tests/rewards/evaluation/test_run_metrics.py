"""Columns of the metrics of fine-tuning runs."""

from pathlib import Path

import pytest

from mmrlhf.data import write_jsonl
from mmrlhf.errors import UserError
from mmrlhf.rewards.evaluation.run_metrics import read_runs

KEYS = ("kl", "reward_mean", "gold_mean")


def test_one_run_or_several(tmp_path: Path) -> None:
    rows = [{"epoch": i, "kl": i * 1.0, "reward_mean": 2 * i, "gold_mean": None if i == 1 else i / 2} for i in range(4)]
    write_jsonl(rows, tmp_path / "a" / "metrics.jsonl")
    write_jsonl(rows[2:], tmp_path / "b" / "metrics.jsonl")
    several = read_runs(tmp_path, KEYS)
    assert list(several) == ["a", "b"]
    assert several["a"]["kl"].tolist() == [0, 2, 3] and several["b"]["gold_mean"].tolist() == [1, 1.5]
    assert list(read_runs(tmp_path / "a", KEYS)) == ["a"]


def test_bad_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no metrics\.jsonl in"):
        read_runs(tmp_path, KEYS)
    write_jsonl([{"epoch": 0, "kl": 0.1, "reward_mean": 1.0}], tmp_path / "metrics.jsonl")
    with pytest.raises(
        UserError, match="has a number for each of kl, reward_mean, gold_mean: it has epoch, kl, reward_mean"
    ):
        read_runs(tmp_path, KEYS)
    (tmp_path / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match="row 1 is a list, not an object"):
        read_runs(tmp_path, KEYS)
