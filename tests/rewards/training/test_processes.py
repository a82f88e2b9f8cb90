"""`mmrlhf reward train` under `accelerate launch`: two processes are as one, and killed and resumed they are as never killed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmrlhf.answers import write_answer_pairs
from mmrlhf.data import read_pairs, write_pairs
from mmrlhf.rewards.train import TrainConfig, train
from tests.rewards.language.pairs import kind_pairs
from tests.rewards.language.small_models import small_llama

SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from mmrlhf import distributed
from mmrlhf.cli import main
from mmrlhf.rewards.language import train as language
from mmrlhf.rewards.training import towers

torch.cpu.get_capabilities = dict  # float32, as in the process of the tests
save = towers.save_checkpoint

def dies_at_the_second(state, path):
    if state["epoch"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    save(state, path)

if os.environ.get("DIES"):
    towers.save_checkpoint = language.save_checkpoint = dies_at_the_second
main()
Path(__file__).with_name(f"process-{distributed.rank()}").write_text(str(distributed.size()))
"""
# --cpu would start a single process; --multi_gpu starts two where there is no GPU, too
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
          "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip


def launch(folder: Path, options: list[Any], *, dies: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the command on two processes; with `dies`, the main one is killed before its second checkpoint."""
    (folder / "script.py").write_text(SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path.cwd())}
    command = [*LAUNCH, folder / "script.py", "reward", "train", *options, "--device", "cpu"]
    return subprocess.run(
        [*map(str, command)],
        env=environment | ({"DIES": "1"} if dies else {}),
        capture_output=True,
        text=True,
        timeout=240,
    )


def lines_of(run: Path) -> list[dict[str, Any]]:
    """What was measured, without the time it took."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_two_processes_give_the_weights_of_one(clip_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    """With in-batch negatives, batches that two do not divide, and one of a single prompt."""
    write_pairs(read_pairs(pairs_file)[:33], tmp_path / "pairs.jsonl")
    options = ["--data", tmp_path / "pairs.jsonl", "--model", clip_folder, "--train", "full", "--epochs", 2,
               "--batch-size", 5, "--learning-rate", 1e-3, "--negatives", 0.5, "--validation", 0.2]  # fmt: skip
    done = launch(tmp_path, [*options, "--out", tmp_path / "two"])
    assert done.returncode == 0, done.stderr[-2000:]
    assert [(tmp_path / f"process-{number}").read_text() for number in (0, 1)] == ["2", "2"]
    assert done.stdout.count("the reward is in") == 1
    train(TrainConfig(tmp_path / "pairs.jsonl", out=tmp_path / "one", model=str(clip_folder), train="full", epochs=2,
                      batch_size=5, learning_rate=1e-3, negatives=0.5, validation=0.2, device="cpu"))  # fmt: skip
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name in one:
        # a bias of the keys shifts all logits of a query alike: its gradient is rounding, which Adam brings to full size
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(one[name], two[name], atol=2e-5, rtol=1e-4, msg=name)
    losses = [[line["loss"] for line in lines_of(tmp_path / name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "answers"])
def test_killed_and_resumed_two_processes_are_never_killed(
    kind: str, clip_folder: Path, pairs_file: Path, tmp_path: Path
) -> None:
    """The main process dies of SIGKILL with an epoch made and not saved; the weights and figures are equal to the last bit."""
    data = tmp_path / "data.jsonl"
    common: list[Any] = ["--data", data, "--epochs", 4, "--batch-size", 5, "--validation", 0.2, "--seed", 3]
    if kind == "images":
        write_pairs(read_pairs(pairs_file)[:33], data)
        common += [
            "--model",
            clip_folder,
            "--train",
            "full",
            "--learning-rate",
            1e-3,
            "--negatives",
            0.5,
            "--loss",
            "davidson",
        ]
    else:
        write_answer_pairs(kind_pairs(23, seed=0), data)
        common += ["--model", small_llama(tmp_path / "llama"), "--train", "lora", "--learning-rate", 1e-2]
    whole = launch(tmp_path, [*common, "--out", tmp_path / "whole"])
    assert whole.returncode == 0, whole.stderr[-2000:]
    killed = launch(tmp_path, [*common, "--out", tmp_path / "killed"], dies=True)
    assert killed.returncode != 0 and "Signal 9" in killed.stderr, killed.stderr[-2000:]
    assert (tmp_path / "killed" / "checkpoint.pt").is_file() and len(lines_of(tmp_path / "killed")) == 1
    resumed = launch(tmp_path, [*common, "--out", tmp_path / "killed", "--resume"])
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert lines_of(tmp_path / "killed") == lines_of(tmp_path / "whole") and len(lines_of(tmp_path / "whole")) == 4
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }
