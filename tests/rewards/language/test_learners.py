"""Rows are read once for a head, by all processes together, and what is learnt on scaled features holds on plain ones."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmrlhf.answers import AnswerPair
from mmrlhf.losses import bradley_terry
from mmrlhf.rewards.language.comparisons import answer_margins
from mmrlhf.rewards.language.model import LanguageReward
from mmrlhf.rewards.language.network import ScoreNetwork
from mmrlhf.rewards.language.train import train_language
from tests.rewards.language.pairs import kind_pairs

QUIET: dict[str, Any] = {"seed": 0, "progress": False}
SCRIPT = """
import sys
from pathlib import Path
from mmrlhf import distributed
from mmrlhf.rewards.language.model import LanguageReward
from mmrlhf.rewards.language.train import train_language
from tests.rewards.language.test_learners import run_both
distributed.join()
run_both(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def run_both(model: Path, out: Path) -> None:
    """Train by LoRA and by head, on batches that two processes do not divide; the main process saves."""
    from mmrlhf import distributed

    for tune in ("lora", "head"):
        reward = LanguageReward.from_pretrained(model)
        train_language(kind_pairs(9, 0), kind_pairs(3, 1), reward, tune=tune, epochs=2, learning_rate=1e-2, batch_size=4,
                       micro_batch_size=3, centre=0.01, **QUIET)  # fmt: skip
        if distributed.is_main_process():
            reward.save(out / tune)
        distributed.wait()


def test_two_processes_give_the_weights_of_one(folders: dict[str, Path], tmp_path: Path) -> None:
    root = str(Path(__file__).parents[3])
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": root}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
    command = [*launch, str(tmp_path / "script.py"), str(folders["llama"]), str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    run_both(folders["llama"], tmp_path / "one")
    for tune in ("lora", "head"):
        one, two = (load_file(tmp_path / name / tune / "model.safetensors") for name in ("one", "two"))
        for name in one:
            torch.testing.assert_close(one[name], two[name], atol=2e-5, rtol=1e-4, msg=name)


def test_each_row_is_read_once_for_a_head(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read, original = [], ScoreNetwork.features

    def counted(self: ScoreNetwork, inputs: Any, **how: Any) -> torch.Tensor:
        read.append(len(inputs["input_ids"]))
        return original(self, inputs, **how)

    monkeypatch.setattr(ScoreNetwork, "features", counted)
    pairs = [
        AnswerPair("what", "kind", "rude", 1.0),
        AnswerPair("what", "kind", "cat", 1.0),
        AnswerPair("is", "cat", "kind", 0.0),
    ]
    reward = LanguageReward.from_pretrained(folders["llama"])
    train_language(pairs, [], reward, tune="head", epochs=5, learning_rate=1e-2, **QUIET)
    assert sum(read) == 5  # of the first prompt three, of the second two


def test_a_head_learns_in_scaled_features_and_reads_plain_ones(folders: dict[str, Path]) -> None:
    """The loss of the last epoch's end, computed from the reward that comes out, is the one that training reports next."""
    pairs, lines = kind_pairs(16, 0), []
    for epochs in (3, 4):
        reward = LanguageReward.from_pretrained(folders["llama"])
        reward = train_language(pairs, [], reward, tune="head", epochs=epochs, learning_rate=1e-2, batch_size=16,
                                on_epoch=lambda line: lines.append(line["loss"]), **QUIET)  # fmt: skip
        if epochs == 3:
            margins = torch.tensor(answer_margins(reward, pairs), dtype=torch.float32)
            found = float(bradley_terry(margins, torch.tensor([pair.label_0 for pair in pairs]))[0])
    assert lines[-1] == pytest.approx(found, abs=1e-4)
