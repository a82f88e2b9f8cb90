"""Small files of questions, answers and pictures for the trainers' tests."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mmrlhf.images import save_image, to_pil
from mmrlhf.runs import RunResult


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """An object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pictures(folder: Path, count: int) -> list[str]:
    """Names of random pictures, made in the folder."""
    for i in range(count):
        save_image(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i)), folder / f"{i}.png")
    return [f"{i}.png" for i in range(count)]


def comparisons(folder: Path, count: int = 6) -> Path:
    """Answers without an x are better."""
    rows = [
        {
            "prompt": "What?",
            "answer_0": "A B A B",
            "answer_1": "A B x B",
            "label_0": 1 - i % 2,
            "label_1": i % 2,
            "image": name,
        }
        for i, name in enumerate(pictures(folder, count))
    ]
    for row in rows:
        if row["label_1"]:
            row["answer_0"], row["answer_1"] = row["answer_1"], row["answer_0"]
    return write_rows(rows, folder / "answers.jsonl")


def without_times(metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of metrics that two equal runs share."""
    return [{name: value for name, value in line.items() if name != "seconds"} for line in metrics]


def assert_same_run(one: RunResult, other: RunResult) -> None:
    """The same metrics but for times, and the same adapter."""
    assert without_times(one.metrics) == without_times(other.metrics)
    weights = [load_file(run.out / "adapter_model.safetensors") for run in (one, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def broken_jpeg(path: Path) -> Path:
    """A JPEG that ends in the middle, as a download that broke off: its size can be read, its pixels cannot."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.jpg"
        to_pil(torch.rand(3, 200, 200, generator=torch.Generator().manual_seed(0))).convert("RGB").save(whole)
        data = whole.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path
