"""Weights that are split over two processes train as whole ones do, and are saved as such."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.policy import DiffusionPolicy
from mmrlhf import cli
from mmrlhf.errors import UserError
from mmrlhf.runs import CHECKPOINT
from mmrlhf.sharding import asked_for
from tests.diffusion.helpers import timeless
from tests.diffusion.test_preference_data import bright_and_dark
from tests.processes import finish, launch
from tests.small_flow_models import small_pipeline

SLOWER = "resumed adapter transformer pairs weighted liked chosen own-pairs step-pairs old gradients".split()


def commands(name: str, model: Path, folder: Path, out: Path) -> list[list[str]]:
    """LoRA with all that reads weights between updates; all weights, stopped and resumed; a flow transformer; given pairs."""
    common: dict[str, Any] = {
        "prompts": folder / "prompts.txt", "reward": "brightness", "guidance-scale": 1, "sample-batch-size": 3,
        "train-batch-size": 3, "kl-samples": 1, "embedder": "", "device": "cpu", "images-every": 0,
    }  # fmt: skip
    adapter = common | {"model": model, "samples-per-epoch": 7, "num-steps": 3, "epochs": 2, "lora-rank": 3,
                        "lora-targets": "all", "learning-rate": 1e-3, "ema-decay": 0.9, "kl-weight": 0.1, "kl-budget": 1e6,
                        "guidance-scale": 2, "images-every": 1, "micro-batch-size": 2}  # fmt: skip
    everything = common | {
        "model": model,
        "samples-per-epoch": 4,
        "num-steps": 2,
        "lora-rank": 0,
        "learning-rate": 1e-4,
    }
    transformer = common | {"model": folder / "flow", "prompts-per-epoch": 2, "samples-per-prompt": 3, "num-steps": 3,
                            "epochs": 1, "window": 1, "eval-steps": 3, "size": 16}  # fmt: skip
    trained = {key: value for key, value in common.items() if key not in ("prompts", "reward", "sample-batch-size")}
    judged = trained | {"model": model, "data": folder / "pairs.jsonl", "validation": 0.3, "epochs": 1, "beta": 500,
                        "num-steps": 2, "learning-rate": 1e-3, "micro-batch-size": 1}  # fmt: skip
    chosen = {key: value for key, value in judged.items() if key not in ("validation", "beta")}
    weighted = common | {"model": model, "samples-per-epoch": 4, "num-steps": 2, "epochs": 1, "learning-rate": 1e-3}
    own = {key: value for key, value in weighted.items() if key != "samples-per-epoch"} | {
        "method": "d3po",
        "beta": 10,
        "pairs-per-epoch": 5,
        "micro-batch-size": 3,
    }
    steps = weighted | {"samples-per-epoch": 5, "num-steps": 3, "micro-batch-size": 4}
    old = everything | {"samples-per-epoch": 7, "samples-per-prompt": 2, "epochs": 2, "old-decay-growth": 0.4}
    drawn = {key: value for key, value in steps.items() if key not in ("sample-batch-size", "micro-batch-size")}
    runs: dict[str, list[tuple[str, dict[str, Any], list[str]]]] = {
        "adapter": [("ddpo", adapter, [])],
        "everything": [("ddpo", everything | {"epochs": 1}, ["--gradient-checkpointing"])],
        "resumed": [
            ("ddpo", everything | {"epochs": 1}, ["--gradient-checkpointing"]),
            ("ddpo", everything | {"epochs": 2}, ["--gradient-checkpointing", "--resume"]),
        ],
        "transformer": [("grpo", transformer, [])],
        "pairs": [("dpo", judged, [])],
        "weighted": [("rwr", weighted, [])],
        "liked": [("kto", judged, [])],
        "chosen": [("sft", chosen, [])],
        "own-pairs": [("dpo", own, [])],
        "step-pairs": [("spo", steps, [])],
        "old": [("nft", old, [])],
        "gradients": [("draft", drawn | {"method": "alignprop"}, [])],
    }
    return [
        ["diffusion", method, *flags, *(str(word) for key, value in {**options, "out": out}.items()
                                        for word in (f"--{key}", value))]
        for method, options, flags in runs[name]
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["everything", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOWER)])
def test_two_processes_that_share_the_weights_train_as_one(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pipeline("StableDiffusion3Pipeline", tmp_path / "flow")
    bright_and_dark(tmp_path, 4)
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    two = [[*words, "--shard"] for words in commands(name, model, tmp_path, tmp_path / "two")]
    with launch(two, tmp_path) as launched:
        for words in commands(name, model, tmp_path, tmp_path / "one"):  # meanwhile
            monkeypatch.setattr(sys, "argv", ["mmrlhf", *words])
            cli.main()
        finish(launched, len(two))
    one, other = tmp_path / "one", tmp_path / "two"
    lines = [
        timeless([json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()])
        for out in (one, other)
    ]
    for mine, theirs in zip(*lines, strict=True):
        assert mine.pop("problems") == theirs.pop("problems")
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    states = [torch.load(out / CHECKPOINT, weights_only=True) for out in (one, other)]
    for key, weight in states[0]["policy"].items():  # an update moves one by its learning rate
        torch.testing.assert_close(weight, states[1]["policy"][key], atol=1e-4, rtol=0, msg=key)
    moments = [state["optimizer"]["state"] for state in states]
    for place, kept in moments[0].items():
        assert {key: value.shape for key, value in kept.items()} == {
            key: value.shape for key, value in moments[1][place].items()
        }
    assert (other / "samples").exists() == (one / "samples").exists() == (name == "adapter")
    if name in ("everything", "resumed", "old"):
        trained = DiffusionPolicy.load(str(other / "model"), device="cpu")
        torch.testing.assert_close(dict(trained.network.named_parameters()), states[1]["policy"])
    else:
        DiffusionPolicy.load(str(tmp_path / "flow" if name == "transformer" else model), lora=other, device="cpu")


def test_it_takes_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--shard got 1 process, allowed are 2 or more"):
        asked_for(True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert not asked_for(False)  # accelerate launch with one process
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="got a DeepSpeed configuration, allowed is FSDP"):
        asked_for(False)
