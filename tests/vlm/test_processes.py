"""Two processes train what one does: answers to imitate, comparisons, judged answers, and the model's own answers."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmrlhf import cli
from tests.processes import finish, launch
from tests.vlm.helpers import comparisons, pictures, without_times, write_rows
from tests.vlm.test_rollouts import questions
from vlm.value_heads import VALUES

EXACT = ("trpo", "ilql")
"""Of these, as many answers go through the model at once that one process adds up the very parts that two do."""


def judged(folder: Path) -> Path:
    """Eight answers; the one that is held out is for one process alone."""
    worth = {"A A": 2, "A B": -1, "B": -2, "B B A": -3, "A": 1, "B A": -1, "A B B": -3, "B B": -4}
    rows = [
        {"prompt": "What?", "image": name, "answer": answer, "reward": reward}
        for name, (answer, reward) in zip(pictures(folder, len(worth)), worth.items(), strict=True)
    ]
    return write_rows(rows, folder / "judged.jsonl")


def commands(model: str, folder: Path, out: Path) -> dict[str, list[str]]:
    """A run of each kind; batches that two do not divide, and a last one of a single row.

    A tenth of seven answers is one, which a single process holds; three tenths are two, one for each.
    """
    common: dict[str, Any] = {
        "model": model, "epochs": 2, "lora-rank": 4, "train-batch-size": 3, "learning-rate": 1e-2, "device": "cpu"
    }  # fmt: skip
    drawn = {"prompts": folder / "prompts.jsonl", "reward": "tests.vlm.test_rollouts:letters",
             "sample-batch-size": 3, "max-new-tokens": 4}  # fmt: skip
    wanted: dict[str, dict[str, Any]] = {
        "sft": {"data": folder / "answers.jsonl", "validation": 0.1, "micro-batch-size": 1},
        "dpo": {"data": folder / "answers.jsonl", "validation": 0.1, "epochs": 1},
        "dense-dpo": {"data": folder / "answers.jsonl", "validation": 0.3, "sft-weight": 2},
        "ppo": drawn | {"samples-per-epoch": 7, "inner-epochs": 2},
        "grpo": drawn | {"prompts-per-epoch": 2, "samples-per-prompt": 4},
        "trpo": drawn
        | {"samples-per-epoch": 7, "micro-batch-size": 4, "cg-iterations": 4, "max-kl": 0.05, "learning-rate": None},
        "ilql": {"data": folder / "judged.jsonl", "validation": 0.1, "target-rate": 0.1, "micro-batch-size": 1},
    }
    return {
        name: ["vlm", name, *(str(word) for key, value in {**common, **options, "out": out / name}.items()
                              if value is not None for word in (f"--{key}", value))]
        for name, options in wanted.items()
    }  # fmt: skip


def test_two_processes_give_the_weights_of_one(
    small_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparisons(tmp_path, 7)
    questions(tmp_path)
    judged(tmp_path)
    two = commands(small_llava, tmp_path, tmp_path / "two")
    with launch(list(two.values()), tmp_path) as launched:
        for words in commands(small_llava, tmp_path, tmp_path / "one").values():  # meanwhile
            monkeypatch.setattr(sys, "argv", ["mmrlhf", *words])
            cli.main()
        finish(launched, len(two))
    for name in two:
        lines = [
            without_times(
                [json.loads(line) for line in (tmp_path / side / name / "metrics.jsonl").read_text().splitlines()]
            )
            for side in ("one", "two")
        ]
        figures: dict[str, Any] = {"rel": 1e-4, "abs": 1e-5} if name in EXACT else {"rel": 2e-3, "abs": 1e-4}
        close: dict[str, Any] = {"atol": 2e-6, "rtol": 1e-5} if name in EXACT else {"atol": 2e-4, "rtol": 1e-2}
        for mine, theirs in zip(*lines, strict=True):
            assert mine.pop("problems") == theirs.pop("problems")
            assert mine == pytest.approx(theirs, **figures), name
        for file in sorted((tmp_path / "one" / name).glob("*.safetensors")):
            weights = [load_file(tmp_path / side / name / file.name) for side in ("one", "two")]
            assert weights[0].keys() == weights[1].keys()
            for key, weight in weights[0].items():
                torch.testing.assert_close(weight, weights[1][key], **close, msg=f"{name} {file.name} {key}")
    assert (tmp_path / "two" / "ilql" / VALUES).is_file()
