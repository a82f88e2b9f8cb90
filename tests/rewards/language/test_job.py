"""`mmrlhf reward train` sends answers, and language models, to the rewards that read; `load_reward` finds them again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmrlhf.answers import holds_answers, write_answer_pairs
from mmrlhf.data import write_pairs
from mmrlhf.errors import UserError
from mmrlhf.rewards import load_reward
from mmrlhf.rewards.calibrate import CalibrateConfig, calibrate, fit_temperature
from mmrlhf.rewards.evaluate import EvalConfig, evaluate
from mmrlhf.rewards.language.comparisons import answer_margins
from mmrlhf.rewards.language.job import is_asked_for
from mmrlhf.rewards.language.model import LanguageReward
from mmrlhf.rewards.train import TrainConfig, train
from tests.rewards.language.pairs import colour_pairs, kind_pairs, naming_pairs


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    write_answer_pairs(kind_pairs(60, seed=0), tmp_path / "ANSWERS.jsonl")
    return tmp_path / "ANSWERS.jsonl"


def config_of(data: Path, model: Path | str, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "data": data, "out": data.parent / "reward", "model": str(model), "train": "full", "epochs": 4,
        "learning_rate": 3e-3, "batch_size": 16, "device": "cpu", "warmup_steps": 0,
    }  # fmt: skip
    return TrainConfig(**settings | changes)


def test_answers_train_a_reward_that_every_command_finds(answers: Path, folders: dict[str, Path]) -> None:
    result = train(config_of(answers, folders["llama"]))
    found = load_reward(result.out)
    assert isinstance(found, LanguageReward) and isinstance(result.reward, LanguageReward)
    fresh = kind_pairs(40, seed=9)
    margins = answer_margins(found, fresh)
    assert np.mean((margins > 0) == np.array([pair.label_0 > 0.5 for pair in fresh])) > 0.9
    torch.testing.assert_close(found.score(["what"], ["kind"]), result.reward.score(["what"], ["kind"]))
    lines = [json.loads(line) for line in (result.out / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.metrics and lines[-1]["held_out_agreement"] > 0.8


def test_images_train_a_vision_language_model(tmp_path: Path, folders: dict[str, Path]) -> None:
    write_pairs(colour_pairs(tmp_path, 12, seed=0), tmp_path / "PAIRS.jsonl")
    config = config_of(tmp_path / "PAIRS.jsonl", folders["llava"], train="head", epochs=30, validation=0.0)
    assert is_asked_for(config)
    reward = train(config).reward
    red, blue = (torch.tensor(c).view(3, 1, 1).expand(3, 16, 16) for c in ((0.9, 0.5, 0.1), (0.1, 0.5, 0.9)))
    first, second = reward(torch.stack([red, blue]), ["a cat", "a cat"])
    assert first > second


@pytest.mark.parametrize("tune", ["head", "lora"])
def test_resumed_equals_never_stopped(
    tune: str, answers: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(config_of(answers, folders["llama"], train=tune, out=answers.parent / "whole"))
    config = config_of(answers, folders["llama"], train=tune, out=answers.parent / "stopped")
    original = __import__("mmrlhf.rewards.train", fromlist=["write_jsonl"]).write_jsonl

    def killed_after_two(rows: list[dict[str, object]], path: Path) -> None:
        original(rows, path)
        if len(rows) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mmrlhf.rewards.train.write_jsonl", killed_after_two)
        train(config)
    resumed = train(TrainConfig(**{**vars(config), "resume": True}))
    assert isinstance(resumed.reward, LanguageReward) and isinstance(whole.reward, LanguageReward)
    fresh = kind_pairs(10, seed=3)
    np.testing.assert_array_equal(answer_margins(resumed.reward, fresh), answer_margins(whole.reward, fresh))
    assert isinstance(load_reward(train(TrainConfig(**{**vars(config), "resume": True})).out), LanguageReward)


def test_a_new_round_goes_on_and_replays_the_old(answers: Path, folders: dict[str, Path]) -> None:
    first = train(config_of(answers, folders["llama"]))
    write_answer_pairs(kind_pairs(20, seed=5), answers.parent / "NEW.jsonl")
    second = train(
        config_of(answers.parent / "NEW.jsonl", "tiny-clip", start=first.out, replay=answers, out=answers.parent / "second",
                  epochs=1, learning_rate=1e-5)
    )  # fmt: skip
    line = second.metrics[-1]
    assert line["earlier_pairs"] == 60
    assert line["earlier_agreement_before"] > 0.9 and line["earlier_agreement_after"] > 0.9


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": "tiny-clip"}, "tiny-clip reads none"),
        ({"loss": "davidson"}, "--loss got davidson, allowed for a language"),
        ({"negatives": 0.5}, "--negatives got 0.5"),
        ({"cache": Path("somewhere")}, "--cache got somewhere"),
        ({"micro_batch_size": 0}, "--micro-batch-size got 0, allowed is 1 or more"),
        ({"max_length": 3}, "longer than the 3 tokens"),
        ({"template": "{nothing}"}, "template"),
    ],
)
def test_refuses_what_cannot_be(changes: dict[str, Any], match: str, answers: Path, folders: dict[str, Path]) -> None:
    settings: dict[str, Any] = {"model": folders["llama"]} | changes
    config = config_of(answers, **settings)
    with pytest.raises(UserError, match=match):
        train(config)
    assert not config.out.exists()


def test_faults_are_left_out_when_asked(
    answers: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with answers.open("a") as file:
        file.write('{"prompt": "what", "answer_0": "it", "answer_1": "it", "label_0": 1, "label_1": 0}\n')
    with pytest.raises(UserError, match="compares an answer with itself"):
        train(config_of(answers, folders["llama"]))
    train(config_of(answers, folders["llama"], on_fault="skip", epochs=1))
    assert "1 rows of" in capsys.readouterr().out


def test_holds_answers_only_where_it_says_so(tmp_path: Path, answers: Path) -> None:
    assert holds_answers(answers)
    for text in ("", "[1]\n", "nothing\n", '{"prompt": "a"}\n'):
        (tmp_path / "other").write_text(text)
        assert not holds_answers(tmp_path / "other")
    assert not holds_answers(tmp_path / "missing")


@pytest.mark.parametrize("shown", [False, True])
def test_it_is_evaluated_and_calibrated_as_other_rewards_are(
    shown: bool, tmp_path: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    make = (lambda count, seed: naming_pairs(tmp_path, count, seed)) if shown else kind_pairs
    write_answer_pairs(make(40, 0), tmp_path / "ANSWERS.jsonl")
    fresh = make(20, 4)
    write_answer_pairs(fresh, tmp_path / "FRESH.jsonl")
    reward = train(config_of(tmp_path / "ANSWERS.jsonl", folders["llava" if shown else "llama"], epochs=2)).out
    figures = evaluate(EvalConfig(str(reward), tmp_path / "FRESH.jsonl", tmp_path / "eval.json", device="cpu"))
    found = load_reward(reward)
    assert isinstance(found, LanguageReward)
    margins = answer_margins(found, fresh)
    labels = np.array([pair.label_0 for pair in fresh])
    assert figures["agreement"] == pytest.approx(np.mean((margins > 0) == (labels > 0.5)))
    assert figures["sensitivity"] is None and {len(page_answers(row)) for row in figures["worst"]} <= {2}
    assert all(row["answer_0"] in (tmp_path / "eval.html").read_text() for row in figures["worst"])
    fitted = calibrate(CalibrateConfig(reward, tmp_path / "FRESH.jsonl", device="cpu"))
    assert "temperature 1 →" in capsys.readouterr().out
    assert fitted.temperature == pytest.approx(fit_temperature(margins, labels))
    again = load_reward(reward)
    assert isinstance(again, LanguageReward) and again.temperature == fitted.temperature


def page_answers(row: dict[str, object]) -> list[object]:
    return [row[name] for name in ("answer_0", "answer_1")]


def test_answers_need_a_reward_that_reads(answers: Path) -> None:
    with pytest.raises(UserError, match="the pairs compare answers, and CLIPReward reads none"):
        evaluate(EvalConfig("tiny-clip", answers, answers.parent / "eval.json", device="cpu"))
    assert not (answers.parent / "eval.json").exists()
