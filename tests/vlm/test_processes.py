"""Two processes train what one does: answers to imitate, comparisons, and the model's own answers."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmrlhf import cli
from tests.processes import finish, launch
from tests.vlm.helpers import comparisons, without_times
from tests.vlm.test_rollouts import questions


def commands(model: str, folder: Path, out: Path) -> dict[str, list[str]]:
    """A run of each kind; batches that two do not divide, and a last one of a single row."""
    common: dict[str, Any] = {
        "model": model, "epochs": 2, "lora-rank": 4, "train-batch-size": 3, "learning-rate": 1e-2, "device": "cpu"
    }  # fmt: skip
    drawn = {"prompts": folder / "prompts.jsonl", "reward": "tests.vlm.test_rollouts:letters",
             "sample-batch-size": 3, "max-new-tokens": 4}  # fmt: skip
    wanted: dict[str, dict[str, Any]] = {
        "sft": {"data": folder / "answers.jsonl", "validation": 0.3, "micro-batch-size": 1},
        "dense-dpo": {"data": folder / "answers.jsonl", "validation": 0.3, "sft-weight": 2},
        "ppo": drawn | {"samples-per-epoch": 7, "inner-epochs": 2},
        "grpo": drawn | {"prompts-per-epoch": 2, "samples-per-prompt": 4},
    }
    return {
        name: ["vlm", name, *(str(word) for key, value in {**common, **options, "out": out / name}.items()
                              for word in (f"--{key}", value))]
        for name, options in wanted.items()
    }  # fmt: skip


def test_two_processes_give_the_weights_of_one(
    small_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparisons(tmp_path, 7)
    questions(tmp_path)
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
        for mine, theirs in zip(*lines, strict=True):
            assert mine.pop("problems") == theirs.pop("problems")
            assert mine == pytest.approx(theirs, rel=2e-3, abs=1e-4), name
        weights = [load_file(tmp_path / side / name / "adapter_model.safetensors") for side in ("one", "two")]
        for key, weight in weights[0].items():
            torch.testing.assert_close(weight, weights[1][key], atol=2e-4, rtol=1e-2, msg=f"{name} {key}")
