"""Supervised fine-tuning imitates, goes on after a kill as if nothing had been, and takes every file of answers."""

from pathlib import Path
from typing import Any

import pytest

from mmrlhf.errors import UserError
from tests.vlm.helpers import assert_same_run, comparisons, pictures, write_rows
from vlm.policy import VisionLanguagePolicy
from vlm.preference_data import read_answers
from vlm.sft import SFTConfig, train

COMMON: dict[str, Any] = {"epochs": 3, "learning_rate": 5e-3, "train_batch_size": 4, "lora_rank": 4, "validation": 0.2}


def answers(folder: Path) -> Path:
    """Answers of several lengths."""
    texts = ["A B A B", "A B", "A B A B A B", "A B A"]
    rows = [{"prompt": "What?", "answer": texts[i % 4], "image": name} for i, name in enumerate(pictures(folder, 6))]
    return write_rows(rows, folder / "imitate.jsonl")


def test_it_imitates(model: str, tmp_path: Path) -> None:
    result = train(SFTConfig(model=model, data=answers(tmp_path), out=tmp_path / "run", **COMMON))
    losses = [line["validation_loss"] for line in result.metrics]
    assert losses[-1] < losses[0] - 0.3 and result.metrics[-1]["loss"] < result.metrics[0]["loss"] - 0.3


def test_the_loss_is_the_mean_over_tokens_however_many_rows_at_once(small_llava: str, tmp_path: Path) -> None:
    data = answers(tmp_path)
    how = COMMON | {"epochs": 1, "validation": 0.0, "train_batch_size": 6}
    lines = [
        train(SFTConfig(model=small_llava, data=data, out=tmp_path / str(size), micro_batch_size=size, **how)).metrics[
            0
        ]
        for size in (None, 1, 4)
    ]
    policy = VisionLanguagePolicy.load(small_llava)
    batch = policy.encode(read_answers(data))
    expected = -float(policy.log_probs(batch).sum() / batch.mask.sum())
    assert [line["loss"] for line in lines] == pytest.approx([expected] * 3, rel=1e-4)
    assert [line["grad_norm"] for line in lines] == pytest.approx([lines[0]["grad_norm"]] * 3, rel=1e-3)


def test_resumed_equals_never_killed(small_llava: str, tmp_path: Path) -> None:
    data = answers(tmp_path)
    whole = train(SFTConfig(model=small_llava, data=data, out=tmp_path / "whole", **COMMON))

    def kill(line: dict[str, Any]) -> None:
        if line["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SFTConfig(model=small_llava, data=data, out=tmp_path / "killed", **COMMON), on_epoch=kill)
    resumed = train(SFTConfig(model=small_llava, data=data, out=tmp_path / "killed", resume=True, **COMMON))
    assert_same_run(resumed, whole)


def test_better_and_corrected_answers_are_imitated(tmp_path: Path) -> None:
    assert {row.answer for row in read_answers(comparisons(tmp_path))} == {"A B A B"}
    (name,) = pictures(tmp_path, 1)
    row = {"prompt": "What?", "image": name, "answer": "A cat. A dog.", "segments": [
        {"start": 6, "end": 13, "tag": "misleading", "correction": ""}]}  # fmt: skip
    right = {"prompt": "Why?", "image": name, "answer": "So.", "segments": [{"start": 0, "end": 3, "tag": "correct"}]}
    rows = read_answers(write_rows([row, right], tmp_path / "segments.jsonl"))
    assert [each.answer for each in rows] == ["A cat.", "So."]


def test_bad_input_is_told_in_one_line(small_llava: str, tmp_path: Path) -> None:
    good: dict[str, Any] = {"model": small_llava, "data": answers(tmp_path), "out": tmp_path / "run", **COMMON}
    with pytest.raises(UserError, match="--learning-rate got -1.0, allowed is above 0"):
        train(SFTConfig(**good | {"learning_rate": -1.0}))
    with pytest.raises(UserError, match="--kl-budget got 2, but learning from given answers measures no KL"):
        train(SFTConfig(**good | {"kl_budget": 2.0}))
    bad = write_rows([{"prompt": "What?", "answer": " "}], tmp_path / "bad.jsonl")
    with pytest.raises(UserError, match="bad.jsonl row 1: answer got ' ', allowed is a text that is not empty"):
        train(SFTConfig(**good | {"data": bad}))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="empty.jsonl is empty"):
        train(SFTConfig(**good | {"data": tmp_path / "empty.jsonl"}))
    assert not (tmp_path / "run").exists()


def test_a_template_goes_with_the_weights(small_llava: str, tmp_path: Path) -> None:
    template = "Q <image> {prompt} A {answer}"
    common = COMMON | {"epochs": 1}
    for rank, folder in ((2, "adapter"), (0, "all")):
        config = SFTConfig(
            model=small_llava, data=answers(tmp_path), out=tmp_path / folder, template=template, **common | {"lora_rank": rank}
        )  # fmt: skip
        train(config)
    assert VisionLanguagePolicy.load(small_llava, adapter=tmp_path / "adapter").reader.template == template
    assert VisionLanguagePolicy.load(str(tmp_path / "all" / "model")).reader.template == template
    assert VisionLanguagePolicy.load(small_llava).reader.template == "chat"
    other = VisionLanguagePolicy.load(small_llava, adapter=tmp_path / "adapter", template="{prompt}{answer}")
    assert other.reader.template == "{prompt}{answer}"
