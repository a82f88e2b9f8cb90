"""GRPO and RLOO learn by comparing a prompt's answers, go on after a kill as if nothing had been, and count as they should."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrlhf.config import parse
from mmrlhf.errors import UserError
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.rl import advantages_of_rated, group_advantages, group_spreads, leave_one_out_advantages
from tests.vlm.helpers import assert_same_run
from tests.vlm.test_ppo import killed
from tests.vlm.test_rollouts import letters, questions
from vlm.answer_rewards import Judgement
from vlm.grpo import ADVANTAGES, GRPOConfig, grpo_loss, train, validate

NAN = float("nan")
RLOO: dict[str, Any] = {"advantages": "leave-one-out", "loss": "tokens", "kl_in": "reward"}


@pytest.fixture
def config(small_llava: str, tmp_path: Path) -> GRPOConfig:
    return GRPOConfig(
        model=small_llava, prompts=questions(tmp_path), reward="x", out=tmp_path / "run", epochs=3, prompts_per_epoch=2,
        samples_per_prompt=4, sample_batch_size=8, train_batch_size=4, max_new_tokens=4, lora_rank=4, learning_rate=1e-2,
        save_every=10,
    )  # fmt: skip


@pytest.mark.parametrize("method", [{}, RLOO], ids=["grpo", "rloo"])
def test_the_reward_rises(config: GRPOConfig, method: dict[str, Any]) -> None:
    how: dict[str, Any] = {"learning_rate": 5e-2, "lora_rank": 0, "samples_per_prompt": 16, "sample_batch_size": 32,
                           "train_batch_size": 32, "kl_weight": 0.01, "epochs": 6}  # fmt: skip
    metrics = train(replace(config, inner_epochs=2, **method, **how), reward=letters).metrics
    rewards = [line["reward_mean"] for line in metrics]
    assert rewards[-1] > rewards[0] + 1.5 and metrics[0]["kl"] == 0 < metrics[-1]["kl"]


def test_a_step_of_each_model_and_what_it_measures(model: str, config: GRPOConfig) -> None:
    seen: list[dict[str, Any]] = []
    result = train(replace(config, model=model, epochs=1), reward=letters, on_epoch=seen.append)
    assert result.metrics == seen and (config.out / "adapter_model.safetensors").is_file()
    wanted = {
        "epoch", "samples", "seconds", "reward_mean", "reward_std", "kl", "beta", "clip_fraction", "approx_kl", "entropy",
        "length_mean", "ended", "loss", "grad_norm", "updates", "abstained", "problems", "group_std_mean",
        "zero_spread_groups", "k3",
    }  # fmt: skip
    assert wanted <= seen[0].keys() and (seen[0]["samples"], seen[0]["updates"], seen[0]["kl"]) == (8, 2, 0)


@pytest.mark.parametrize("loss", ["grpo", "tokens"])
def test_the_only_update_needs_no_measuring_before(config: GRPOConfig, tmp_path: Path, loss: Any) -> None:
    """Nothing changes where old log-probs are those of the update itself. A budget asks for them."""
    config = replace(config, train_batch_size=8, epochs=2, loss=loss)
    quick = train(config, reward=letters).metrics
    slow = train(replace(config, out=tmp_path / "slow", kl_budget=1e9, micro_batch_size=3), reward=letters).metrics
    assert quick[0]["ratio_min"] == quick[0]["ratio_max"] == 1 and quick[1]["kl"] != 0
    for name in ("loss", "grad_norm", "kl", "entropy", "k3", "reward_mean"):
        assert [line[name] for line in quick] == pytest.approx([line[name] for line in slow], rel=1e-2, abs=1e-5)


@pytest.mark.parametrize("method", [{"train_batch_size": 8}, RLOO], ids=["grpo", "rloo"])
def test_resumed_equals_never_killed(config: GRPOConfig, tmp_path: Path, method: dict[str, Any]) -> None:
    config = replace(config, save_every=1, **method)
    whole = train(config, reward=letters)
    again = replace(config, out=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        train(again, reward=killed(2))
    resumed = train(replace(again, resume=True), reward=letters)
    assert_same_run(resumed, whole)
    assert len(whole.metrics) == 3


def test_the_loss_by_hand() -> None:
    """Weights of mean length / own length: the mean over answers of the mean over their tokens."""
    mask = torch.tensor([[True, True, True], [True, False, False]])
    log_ratio = torch.tensor([[0.0, 1.0, -0.1], [-1.0, 7.0, 7.0]])
    far = torch.tensor([[0.5, 0.0, 0.0], [-0.5, 7.0, 7.0]])  # log π_ref
    advantages, weights = torch.tensor([[1.0], [-2.0]]), torch.tensor([[2 / 3], [2.0]])
    loss, figures = grpo_loss(log_ratio, torch.zeros(2, 3), far, mask, advantages, weights, 0.2, 0.1)
    gains = [[1.0, 1.2, math.exp(-0.1)], [-2 * 0.8]]
    k3 = [[math.exp(d) - 1 - d for d in (0.5, -1.0, 0.1)], [math.exp(0.5) - 1 - 0.5]]
    each = [
        sum(-g + 0.1 * k for g, k in zip(*pair, strict=True)) / len(pair[0]) for pair in zip(gains, k3, strict=True)
    ]
    assert float(loss) == pytest.approx(sum(each) / 2, rel=1e-5)
    assert figures["k3"] == pytest.approx((sum(k3[0]) + k3[1][0]) / 4, rel=1e-5)
    plain, _ = grpo_loss(log_ratio, torch.zeros(2, 3), far, mask, advantages, torch.ones(2, 1), 0.2, 0.0)
    assert float(plain) == pytest.approx(-sum(gains[0] + gains[1]) / 4, rel=1e-5)


def test_advantages_compare_within_a_group_and_leave_abstentions_out() -> None:
    worth = torch.tensor([[1.0, NAN, 2.0, 6.0], [5.0, 5.0, 5.0, 5.0], [NAN, NAN, 3.0, NAN]])
    rated = torch.tensor([[1.0, 2.0, 6.0]])
    for how, advantages in (("group", group_advantages), ("leave-one-out", leave_one_out_advantages)):
        found = advantages_of_rated(worth, ADVANTAGES[how])
        torch.testing.assert_close(found[:1, [0, 2, 3]], advantages(rated))
        assert found[0, 1] == 0 and (found[1:] == 0).all()
    assert group_spreads(worth) == {
        "group_std_mean": pytest.approx(float(rated.std(correction=0)) / 3), "zero_spread_groups": pytest.approx(2 / 3)
    }  # fmt: skip


def test_an_answer_that_nobody_judges_is_left_out(config: GRPOConfig, tmp_path: Path) -> None:
    def some(rows: Sequence[Row]) -> list[Judgement]:
        return [each if i % 3 else Judgement((), NAN) for i, each in enumerate(letters(rows))]

    (line,) = train(replace(config, epochs=1), reward=some).metrics
    assert line["abstained"] == 3 and line["loss"] == line["loss"]
    with pytest.raises(UserError, match=r"the reward \(8 of 8 are NaN, 0 infinite\) is not a finite number in epoch 0"):
        train(replace(config, out=tmp_path / "other"), reward=lambda rows: [Judgement((), NAN)] * len(rows))


def test_equal_rewards_teach_nothing_and_are_told(config: GRPOConfig) -> None:
    metrics = train(config, reward=lambda rows: [Judgement((), 1.0)] * len(rows)).metrics
    assert metrics[0]["grad_norm"] == 0 and metrics[-1]["kl"] == 0
    assert {"flat reward", "flat groups"} <= set(metrics[-1]["problems"])


def test_a_budget_stops_before_the_kl_exceeds_it(config: GRPOConfig) -> None:
    result = train(replace(config, learning_rate=5e-2, kl_budget=0.5, epochs=8), reward=letters)
    assert "over the budget of 0.5" in result.stopped and len(result.metrics) < 8


def test_bad_input_is_told_in_one_line(config: GRPOConfig) -> None:
    for change, words in (
        ({"samples_per_prompt": 1}, "--samples-per-prompt got 1, allowed is 2 or more: answers are compared"),
        ({"prompts_per_epoch": 0}, "--prompts-per-epoch got 0, allowed is 1 or more"),
        ({"kl_weight": -1.0}, "--kl-weight got -1.0, allowed is 0 or more"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            validate(replace(config, **change))
    with pytest.raises(UserError, match="--reward got 'nowhere:nothing'"):
        train(replace(config, reward="nowhere:nothing"))
    assert not config.out.exists()
    given = ["--model", "m", "--prompts", "p", "--reward", "r", "--out", "o", "--loss", "mean"]
    with pytest.raises(UserError, match="--loss got 'mean', allowed is one of grpo, tokens"):
        parse(GRPOConfig, given, "mmrlhf vlm grpo")
