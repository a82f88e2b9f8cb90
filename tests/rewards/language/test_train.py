"""Training: preferences in words, in pictures and between the two are learnt; a killed run resumes; small batches add up."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrlhf.answers import AnswerPair
from mmrlhf.checkpoint import load_checkpoint
from mmrlhf.errors import UserError
from mmrlhf.losses import bradley_terry
from mmrlhf.rewards.language.comparisons import Comparison, answer_margins
from mmrlhf.rewards.language.model import LanguageReward
from mmrlhf.rewards.language.train import train_language
from tests.rewards.language.pairs import colour_pairs, kind_pairs, naming_pairs

QUIET: dict[str, Any] = {"seed": 0, "progress": False}


def agreement(reward: LanguageReward, pairs: Sequence[Comparison]) -> float:
    margins = answer_margins(reward, pairs)
    return sum((margin > 0) == (pair.label_0 > 0.5) for margin, pair in zip(margins, pairs, strict=True)) / len(pairs)


def weights_of(reward: LanguageReward) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in reward.network.state_dict().items()}


@pytest.mark.parametrize(
    ("model", "tune", "rate"),
    [("llama", "head", 3e-2), ("llama", "lora", 3e-2), ("llama", "last", 3e-3), ("llama", "full", 3e-3),
     ("bert", "full", 3e-3)],
)  # fmt: skip
def test_a_liking_for_a_word_is_learnt_and_found_in_new_texts(
    folders: dict[str, Path], model: str, tune: str, rate: float
) -> None:
    reward = LanguageReward.from_pretrained(folders[model])
    history: list[dict[str, Any]] = []
    reward = train_language(
        kind_pairs(96, 0), kind_pairs(20, 1), reward, tune=tune, epochs=30 if tune == "head" else 5, learning_rate=rate,
        batch_size=16, last_blocks=1, on_epoch=history.append, **QUIET,
    )  # fmt: skip
    assert agreement(reward, kind_pairs(50, 2)) > 0.9
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert set(history[0]) == {"epoch", "loss", "held_out_loss", "held_out_agreement", "seconds"}


@pytest.mark.parametrize(
    ("model", "tune", "rate"), [("llava", "head", 3e-2), ("qwen", "head", 3e-2), ("llava", "lora", 1e-2)]
)
def test_a_liking_for_a_colour_is_learnt_from_pictures(
    folders: dict[str, Path], tmp_path: Path, model: str, tune: str, rate: float
) -> None:
    reward = LanguageReward.from_pretrained(folders[model])
    reward = train_language(
        colour_pairs(tmp_path, 48, 0), [], reward, tune=tune, epochs=20 if tune == "head" else 3, learning_rate=rate,
        batch_size=16, **QUIET,
    )  # fmt: skip
    assert agreement(reward, colour_pairs(tmp_path, 30, 1)) > 0.9
    red = torch.tensor([0.9, 0.5, 0.1]).view(1, 3, 1, 1).expand(1, 3, 40, 40)
    assert reward(red, ["the cat"]) > reward(red.flip(1), ["the cat"])


@pytest.mark.parametrize("model", ["llava", "qwen"])
def test_only_the_picture_tells_which_answer_is_right(folders: dict[str, Path], tmp_path: Path, model: str) -> None:
    reward = LanguageReward.from_pretrained(folders[model])
    reward = train_language(
        naming_pairs(tmp_path, 48, 0), [], reward, tune="full", epochs=8, learning_rate=3e-3, batch_size=16, **QUIET
    )
    fresh = naming_pairs(tmp_path, 32, 1)
    assert agreement(reward, fresh) > 0.9
    swapped = [replace(pair, image=fresh[i ^ 1].image) for i, pair in enumerate(fresh)]  # red's neighbour is blue
    assert agreement(reward, swapped) < 0.1


@pytest.mark.parametrize("tune", ["head", "lora", "full"])
def test_killed_and_resumed_is_never_killed(folders: dict[str, Path], tmp_path: Path, tune: str) -> None:
    pairs, held_out, lines = kind_pairs(24, 0), kind_pairs(8, 1), []

    def run(on_epoch: Callable[[dict[str, Any]], None], state: dict[str, Any] | None = None) -> LanguageReward:
        return train_language(
            pairs, held_out, LanguageReward.from_pretrained(folders["llama"]), tune=tune, epochs=4, learning_rate=1e-3,
            batch_size=8, warmup_steps=5, checkpoint=tmp_path / "checkpoint.pt", state=state, on_epoch=on_epoch, **QUIET,
        )  # fmt: skip

    whole = run(lambda line: lines.append(line["loss"]))
    again: list[float] = []

    def kill_at_two(line: dict[str, Any]) -> None:
        again.append(line["loss"])
        if line["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(kill_at_two)
    resumed = run(lambda line: again.append(line["loss"]), load_checkpoint(tmp_path / "checkpoint.pt"))
    assert lines == again
    first, second = weights_of(whole), weights_of(resumed)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_small_batches_add_up_to_the_big_one(folders: dict[str, Path], gradient_checkpointing: bool) -> None:
    """SGD-like: one step of AdamW from the same gradients; margins, unequal weights and the centring term included."""
    pairs = [replace(pair, group="", margin=0.3 * (i % 2)) for i, pair in enumerate(kind_pairs(12, 0))]
    pairs[3] = replace(pairs[3], label_0=0.5)
    rewards = [
        train_language(
            pairs, [], LanguageReward.from_pretrained(folders["llama"]), tune="full", epochs=2, learning_rate=1e-3,
            batch_size=12, micro_batch_size=micro, centre=0.01, label_smoothing=0.1,
            weights=torch.linspace(0.5, 2, 12),
            gradient_checkpointing=gradient_checkpointing and micro is not None, **QUIET,
        )
        for micro in (None, 5)
    ]  # fmt: skip
    big, small = (weights_of(reward) for reward in rewards)
    for name in big:
        torch.testing.assert_close(big[name], small[name], atol=2e-5, rtol=1e-3)
    start = LanguageReward.from_pretrained(folders["llama"]).network.state_dict()
    assert any((big[name] - start[name]).abs().max() > 5e-4 for name in big)


def test_the_centring_term_pulls_the_mean_to_zero(folders: dict[str, Path]) -> None:
    def mean(centre: float) -> float:
        reward = LanguageReward.from_pretrained(folders["bert"])
        assert reward.network.head.bias is not None and abs(float(reward.score(["it"], ["kind"]))) > 0.5
        reward = train_language(kind_pairs(24, 0), [], reward, tune="full", epochs=10, learning_rate=1e-2, batch_size=8,
                                centre=centre, **QUIET)  # fmt: skip
        scores = [reward.score([p.prompt] * 2, [p.answer_0, p.answer_1]).mean() for p in kind_pairs(8, 1)]
        return abs(float(torch.stack(scores).mean()))

    assert mean(0.1) < 0.5 * mean(0.0)


def test_a_fresh_head_has_scores_that_differ_and_a_gradient(folders: dict[str, Path], tmp_path: Path) -> None:
    """Not so with weights of spread 1/(width + 1), a known cause of a loss stuck at 0.693."""
    pairs = kind_pairs(16, 0)
    for name in ("llama", "llava", "qwen"):
        reward = LanguageReward.from_pretrained(folders[name])
        scores = reward.score([pair.prompt for pair in pairs], [pair.answer_0 for pair in pairs])
        assert scores.std() > 0.02, name
        reward.network.head.requires_grad_(True)
        rows = reward.rows([pair.prompt for pair in pairs], [pair.answer_0 for pair in pairs], None)
        found = reward.network(reward.reader.encode(rows))[:, 0]
        loss, _ = bradley_terry(found[::2] - found[1::2], torch.ones(8))
        loss.backward()
        gradient = reward.network.head.weight.grad
        assert gradient is not None and gradient.norm() > 0.05, name
        assert reward.network.head.bias is None


def test_it_says_when_nothing_is_learnt(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    reward = LanguageReward.from_pretrained(folders["llama"])
    with torch.no_grad():
        reward.network.head.weight.zero_()
    train_language(kind_pairs(8, 0), [], reward, tune="head", epochs=1, learning_rate=1e-9, **QUIET)
    said = capsys.readouterr().out
    assert "the loss is 0.6931, that of equal scores 0.6931" in said and "raise --learning-rate (now 1e-09)" in said
    reward = LanguageReward.from_pretrained(folders["llama"])
    train_language(kind_pairs(8, 0), [], reward, tune="head", epochs=3, learning_rate=3e-2, **QUIET)
    assert capsys.readouterr().out == ""


def test_the_best_epoch_is_kept_and_training_stops_after_it(folders: dict[str, Path]) -> None:
    history: list[dict[str, Any]] = []
    held_out = [
        replace(pair, label_0=1 - pair.label_0) for pair in kind_pairs(20, 1)
    ]  # learning can only make it worse
    reward = LanguageReward.from_pretrained(folders["llama"])
    train_language(kind_pairs(64, 0), held_out, reward, tune="head", epochs=40, learning_rate=3e-2, batch_size=8, patience=3,
                   on_epoch=history.append, **QUIET)  # fmt: skip
    ranks = [(line["held_out_agreement"], -line["held_out_loss"]) for line in history]
    best = max(range(len(ranks)), key=lambda i: ranks[i])
    assert len(history) == best + 4 < 40
    assert agreement(reward, held_out) == pytest.approx(ranks[best][0])


def test_each_criterion_trains_its_own_row(folders: dict[str, Path]) -> None:
    """Safety asks for the opposite of what is liked."""
    liked = kind_pairs(64, 0)
    safe = [replace(pair, criterion="safety", label_0=1 - pair.label_0) for pair in kind_pairs(64, 3)]
    reward = LanguageReward.from_pretrained(folders["llama"], criteria=("", "safety"))
    reward = train_language(
        [*liked, *safe], [], reward, tune="head", epochs=30, learning_rate=3e-2, batch_size=16, **QUIET
    )
    assert agreement(reward, kind_pairs(30, 4)) > 0.9
    assert agreement(reward, [replace(p, criterion="safety", label_0=1 - p.label_0) for p in kind_pairs(30, 4)]) > 0.9
    kind, rude = reward.scores(["what is it"] * 2, ["a kind cat", "a rude cat"]).T
    assert kind[0] > rude[0] and kind[1] < rude[1]


def test_pairs_that_are_too_long(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [*kind_pairs(6, 0), AnswerPair("the cat " * 40, "kind", "rude", 1.0)]
    how: dict[str, Any] = {"tune": "head", "epochs": 1, "learning_rate": 1e-2, **QUIET}

    def start(too_long: str) -> LanguageReward:
        return LanguageReward.from_pretrained(folders["llama"], too_long=too_long)

    with pytest.raises(UserError, match=r"2 of 14 texts are longer than the 64 tokens .*--too-long truncate"):
        train_language(pairs, [], start("refuse"), **how)
    train_language(pairs, [], start("truncate"), **how)
    assert (
        "2 of 14 texts in the training pairs are longer than 64 tokens: their prompts lose the start"
        in capsys.readouterr().out
    )
    train_language(pairs, [], start("drop"), weights=torch.ones(7), **how)
    assert "1 of 7 pairs are left out" in capsys.readouterr().out
    with pytest.raises(UserError, match="none of 1 pairs is left"):
        train_language(pairs[-1:], [], start("drop"), **how)


def test_what_cannot_be_trained(folders: dict[str, Path], tmp_path: Path) -> None:
    how: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-2, **QUIET}
    text = LanguageReward.from_pretrained(folders["llama"])
    with pytest.raises(UserError, match="got images for a LlamaForSequenceClassification, which reads text only"):
        train_language(colour_pairs(tmp_path, 2, 0), [], text, tune="head", **how)
    with pytest.raises(UserError, match=r"got the criterion 'safety', allowed are ''"):
        train_language([replace(kind_pairs(1, 0)[0], criterion="safety")], [], text, tune="head", **how)
    with pytest.raises(UserError, match="--train got 'some', allowed are head, lora, last, full"):
        train_language(kind_pairs(2, 0), [], text, tune="some", **how)
    with pytest.raises(UserError, match="got 1 weights for 2 pairs"):
        train_language(kind_pairs(2, 0), [], text, tune="head", weights=torch.ones(1), **how)
    with pytest.raises(UserError, match="no longer a number: lower --learning-rate"):
        train_language(kind_pairs(8, 0), [], text, tune="full", batch_size=2, **how | {"learning_rate": math.inf})


def test_a_reward_that_learnt_from_images_asks_for_them(folders: dict[str, Path], tmp_path: Path) -> None:
    reward = LanguageReward.from_pretrained(folders["llava"])
    pairs = naming_pairs(tmp_path, 4, 0)
    train_language(pairs, [], reward, tune="head", epochs=1, learning_rate=1e-2, **QUIET)
    with pytest.raises(UserError, match="1 of 1 rows have no image, and this reward learnt from images"):
        reward.score(["what is it"], ["red"])
    reward.score(["what is it"], ["red"], [torch.rand(3, 20, 30)])


def test_a_second_round_goes_on_from_the_first(folders: dict[str, Path], tmp_path: Path) -> None:
    reward = LanguageReward.from_pretrained(folders["llama"])
    train_language(kind_pairs(64, 0), [], reward, tune="head", epochs=20, learning_rate=3e-2, **QUIET)
    reward.save(tmp_path / "first")
    before = reward.network.head.weight.clone()
    again = LanguageReward.from_pretrained(tmp_path / "first", criteria=("", "safety"))
    assert again.criteria == ("", "safety")
    assert torch.equal(again.network.head.weight[:1], before)
    assert agreement(again, kind_pairs(20, 5)) > 0.9
