"""Two processes train what one does: every method, several in one launch."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrlhf import cli
from tests.diffusion.helpers import timeless, trained_weights
from tests.diffusion.test_preference_data import bright_and_dark
from tests.processes import finish, launch

QUICK = ("ddpo", "dpo", "nft", "draft-k")
SLOWER = ("sft", "kto", "d3po", "rwr", "spo", "draft-lv", "alignprop", "refl")
REWARD = """
import torch


def brightness(images, prompts):
    \"\"\"Of which a part of the pictures has none.\"\"\"
    return images.mean(dim=(1, 2, 3)).where(torch.tensor([prompt != "red" for prompt in prompts]), torch.nan)
"""


def commands(names: Sequence[str], model: Path, folder: Path, out: Path) -> dict[str, list[str]]:
    """A run of each method, of two updates or more; batches that two do not divide, and a last one of a single row."""
    common: dict[str, Any] = {
        "model": model, "epochs": 1, "num-steps": 2, "guidance-scale": 1, "lora-rank": 2, "learning-rate": 1e-3,
        "train-batch-size": 3, "kl-samples": 3, "images-every": 0, "embedder": "", "device": "cpu",
    }  # fmt: skip
    judged: dict[str, Any] = {"data": folder / "pairs.jsonl", "beta": 500, "validation": 0.3}
    drawn: dict[str, Any] = {"prompts": folder / "prompts.txt", "reward": "brightness"}
    sampled = drawn | {"sample-batch-size": 3, "samples-per-epoch": 4}
    paired = drawn | {"sample-batch-size": 3, "pairs-per-epoch": 4, "beta": 50}
    slopes = drawn | {"samples-per-epoch": 4}
    abstains = {"reward": f"python:{folder / 'reward.py'}:brightness"}
    wanted: dict[str, tuple[str, dict[str, Any]]] = {
        "sft": ("sft", {"data": folder / "pairs.jsonl", "gradient-accumulation": 2, "epochs": 2}),
        "dpo": ("dpo", judged | {"train-batch-size": 2}),
        "kto": ("kto", judged | {"train-batch-size": 5, "micro-batch-size": 1}),
        "d3po": ("dpo", paired | {"method": "d3po", "epochs": 2}),
        "ddpo": ("ddpo", sampled | {"clip-range": 1e-2, "baseline": "value", "epochs": 2}),
        "rwr": ("rwr", sampled | {"temperature": 0.01, "samples-per-prompt": 2}),
        "nft": ("nft", sampled | abstains | {"samples-per-prompt": 2, "epochs": 2}),
        "spo": ("spo", sampled | {"candidates": 2, "window": "0 2", "epochs": 2}),
        "draft-k": ("draft", slopes | {"gradient-accumulation": 2, "epochs": 2}),
        "draft-lv": ("draft", slopes | {"method": "draft-lv"}),
        "alignprop": ("draft", slopes | {"method": "alignprop", "eta": 1}),
        "refl": ("draft", slopes | {"method": "refl", "refl-target": 0.6, "refl-weight": 1}),
    }
    return {
        name: ["diffusion", method, *(word for key, value in {**common, **options, "out": out / name}.items()
                                      for word in (f"--{key}", *str(value).split(" ")))]
        for name, (method, options) in wanted.items()
        if name in names
    }  # fmt: skip


@pytest.mark.parametrize("names", [QUICK, pytest.param(SLOWER, marks=pytest.mark.slow)])
def test_two_processes_give_the_weights_of_one(
    names: Sequence[str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bright_and_dark(tmp_path, 4)
    (tmp_path / "prompts.txt").write_text("a cat\na dog\nred\n")
    (tmp_path / "reward.py").write_text(REWARD)
    two = commands(names, model, tmp_path, tmp_path / "two")
    with launch(list(two.values()), tmp_path) as launched:
        for words in commands(names, model, tmp_path, tmp_path / "one").values():  # meanwhile
            monkeypatch.setattr(sys, "argv", ["mmrlhf", *words])
            cli.main()
        finish(launched, len(two))
    for name in two:
        lines = [
            timeless([json.loads(line) for line in (tmp_path / side / name / "metrics.jsonl").read_text().splitlines()])
            for side in ("one", "two")
        ]
        for mine, theirs in zip(*lines, strict=True):
            assert mine.pop("problems") == theirs.pop("problems")
            assert mine.pop("grad_norm") == pytest.approx(theirs.pop("grad_norm"), rel=1e-3), name
            assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4), name
        weights = [trained_weights(tmp_path / side / name) for side in ("one", "two")]
        for key, weight in weights[0].items():  # an update moves one by 1e-3
            torch.testing.assert_close(weight, weights[1][key], atol=2e-4, rtol=0, msg=f"{name} {key}")
