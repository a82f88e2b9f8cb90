"""DPO and Dense DPO learn a preference, go on after a kill as if nothing had been, and say what is wrong with their input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrlhf.config import parse
from mmrlhf.errors import UserError
from mmrlhf.rewards.language.inputs import Row
from tests.vlm.helpers import assert_same_run, comparisons, pictures, write_rows
from vlm import dense_dpo, dpo
from vlm.dense_dpo import DenseDPOConfig
from vlm.dpo import DPOConfig
from vlm.policy import VisionLanguagePolicy
from vlm.preference_data import read_choices
from vlm.preference_training import Weighting, batch_loss, mean_length, tokens_of

TRAINERS: list[tuple[Callable[..., Any], Callable[..., Any]]] = [
    (dpo.train, DPOConfig), (dense_dpo.train, DenseDPOConfig)
]  # fmt: skip
COMMON: dict[str, Any] = {"epochs": 3, "learning_rate": 2e-3, "train_batch_size": 4, "lora_rank": 4, "validation": 0.3}


@pytest.mark.parametrize(("train", "config"), TRAINERS, ids=["dpo", "dense-dpo"])
def test_the_preferred_answers_become_likelier(
    model: str, tmp_path: Path, train: Callable[..., Any], config: Callable[..., Any]
) -> None:
    data = comparisons(tmp_path)
    result = train(config(model=model, data=data, out=tmp_path / "run", **COMMON))
    first, last = result.metrics[0], result.metrics[-1]
    assert last["validation_implicit_accuracy"] == 1 and last["validation_loss"] < first["validation_loss"] < 0.6931
    assert last["pairs"] == 4 and last["undecided"] == 0
    policy = VisionLanguagePolicy.load(model, adapter=tmp_path / "run")
    margins = []
    for by in (policy, VisionLanguagePolicy.load(model)):
        rows = [Row("What?", answer, tmp_path / "0.png") for answer in ("A B A B", "A B x B")]
        margins.append(float(by.log_probs(by.encode(rows)).sum(1) @ torch.tensor([1.0, -1.0])))
    assert margins[0] > margins[1] + 1


@pytest.mark.parametrize(("train", "config"), TRAINERS, ids=["dpo", "dense-dpo"])
def test_resumed_equals_never_killed(
    small_llava: str, tmp_path: Path, train: Callable[..., Any], config: Callable[..., Any]
) -> None:
    data = comparisons(tmp_path)
    whole = train(config(model=small_llava, data=data, out=tmp_path / "whole", **COMMON))

    def kill(line: dict[str, Any]) -> None:
        if line["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(model=small_llava, data=data, out=tmp_path / "killed", **COMMON), on_epoch=kill)
    resumed = train(config(model=small_llava, data=data, out=tmp_path / "killed", resume=True, **COMMON))
    assert_same_run(resumed, whole)


def test_parts_of_an_update_give_the_same(small_llava: str, tmp_path: Path) -> None:
    data = comparisons(tmp_path)
    results = [
        dpo.train(DPOConfig(model=small_llava, data=data, out=tmp_path / str(size), micro_batch_size=size, **COMMON))
        for size in (None, 1)
    ]
    whole, parts = (result.metrics[-1]["validation_loss"] for result in results)
    assert parts == pytest.approx(whole, rel=1e-3)


def test_imitation_beside_the_comparison(small_llava: str, tmp_path: Path) -> None:
    """`sft_weight` adds what SFT on the better answers would minimize, and these do become likelier for it."""
    policy, data, weighting = VisionLanguagePolicy.load(small_llava), comparisons(tmp_path), Weighting()
    pairs = [tokens_of(policy, choice, weighting) for choice in read_choices(data)[0]]
    start, part = torch.zeros(2, len(pairs)), torch.arange(len(pairs))
    configs = [DPOConfig(small_llava, out=tmp_path, data=data, sft_weight=weight) for weight in (0.0, 3.0)]
    length = mean_length(pairs, part)
    losses = [float(batch_loss(policy, pairs, start, weighting, config, length, part)[0]) for config in configs]
    better = policy.encode([pair.choice.chosen for pair in pairs])
    expected = -float(policy.log_probs(better).sum() / better.mask.sum())
    assert losses[1] - losses[0] == pytest.approx(3 * expected, rel=1e-4)
    moved = [
        dpo.train(DPOConfig(model=small_llava, data=data, out=tmp_path / str(weight), sft_weight=weight, **COMMON))
        .metrics[-1]["validation_chosen_moved"]
        for weight in (0.0, 3.0)
    ]  # fmt: skip
    assert moved[1] > max(moved[0], 0.0) + 0.1


def test_the_released_variant_sums(small_llava: str, tmp_path: Path) -> None:
    """γ 1 without the mean is DPO, but for what counts as changed, which then does not matter."""
    data = comparisons(tmp_path)
    how = COMMON | {"beta": 0.1}
    plain = dpo.train(DPOConfig(model=small_llava, data=data, out=tmp_path / "plain", **how))
    dense = dense_dpo.train(
        DenseDPOConfig(model=small_llava, data=data, out=tmp_path / "dense", variant="released", gamma=1.0, **how)
    )
    assert dense.metrics[-1]["loss"] == pytest.approx(plain.metrics[-1]["loss"], rel=1e-5)


def test_corrections_are_choices(tmp_path: Path) -> None:
    (name,) = pictures(tmp_path, 1)
    answer = "A cat sleeps. A dog barks. It is red."
    rows = [
        {"prompt": "What?", "image": name, "answer": answer, "segments": [
            {"start": 13, "end": 26, "tag": "misleading", "correction": ""},
            {"start": 33, "end": 36, "tag": "misleading", "correction": "blue"}]},
        {"prompt": "Why?", "image": name, "answer": answer, "segments": [{"start": 0, "end": 13, "tag": "correct"}]},
    ]  # fmt: skip
    choices, undecided = read_choices(write_rows(rows, tmp_path / "segments.jsonl"))
    assert undecided == 1 and len(choices) == 1
    assert choices[0].chosen.answer == "A cat sleeps. It is blue." and choices[0].rejected.answer == answer


def test_bad_input_is_told_in_one_line(small_llava: str, tmp_path: Path) -> None:
    data = comparisons(tmp_path)
    good: dict[str, Any] = {"model": small_llava, "data": data, "out": tmp_path / "run", **COMMON}
    for change, words in (
        ({"beta": 0.0}, "--beta got 0.0, allowed is above 0"),
        ({"validation": 1.0}, "--validation got 1.0, allowed is 0 up to, but not, 1"),
        ({"sft_weight": -1.0}, "--sft-weight got -1.0, allowed is 0 or more"),
        ({"label_smoothing": 0.5}, "--label-smoothing got 0.5, allowed is 0 up to, but not, 0.5"),
        ({"kl_budget": 2.0}, "--kl-budget got 2, but learning from given answers measures no KL: leave it out"),
        ({"max_length": 20}, "12 of 12 answers are longer than the 20 tokens that are read"),
        ({"max_length": 20, "too_long": "drop"}, "no pair of .* fits into 20 tokens"),
        ({"data": tmp_path / "none.jsonl"}, "cannot read .*none.jsonl"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            dpo.train(DPOConfig(**good | change))
        assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="--gamma got 0.0, allowed is above 0"):
        dense_dpo.train(DenseDPOConfig(**good, gamma=0.0))
    ties = [json.loads(line) | {"label_0": 0.5, "label_1": 0.5} for line in data.read_text().splitlines()]
    with pytest.raises(UserError, match="tells no better answer from a worse one"):
        dpo.train(DPOConfig(**good | {"data": write_rows(ties, tmp_path / "ties.jsonl")}))
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    (tmp_path / "0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="0.png"):
        dpo.train(DPOConfig(**good))
    missing = write_rows([rows[1] | {"image": "gone.png"}], tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match="row 1: no file .*gone.png"):
        dpo.train(DPOConfig(**good | {"data": missing}))


def test_the_papers_rate_with_a_lora_is_told(
    small_llava: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {"model": small_llava, "data": comparisons(tmp_path), "out": tmp_path / "run"}
    dense_dpo.train(DenseDPOConfig(**given | COMMON | {"epochs": 1, "learning_rate": 5e-7}))
    words = "--learning-rate 5e-07 is one for all weights, with which a LoRA hardly moves: give about a hundred times as much"
    assert words in capsys.readouterr().err
    dense_dpo.train(
        DenseDPOConfig(**given | COMMON | {"epochs": 1, "learning_rate": 5e-7, "lora_rank": 0, "out": tmp_path / "all"})
    )
    assert "is one for all weights" not in capsys.readouterr().err


def test_the_command_line_has_the_papers_defaults(tmp_path: Path) -> None:
    given = ["--model", "tiny-llava", "--data", "a.jsonl", "--out", str(tmp_path)]
    dense = parse(DenseDPOConfig, given, "mmrlhf vlm dense-dpo")
    assert (dense.gamma, dense.beta, dense.learning_rate, dense.train_batch_size, dense.epochs) == (5, 0.5, 5e-7, 32, 7)
