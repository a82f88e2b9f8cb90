"""PPO learns from rewards of parts and of the whole, goes on after a kill as if nothing had been, and counts as it should."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmrlhf.config import parse
from mmrlhf.errors import UserError
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.rl import explained_variance, gae, value_loss
from tests.rewards.small_vlm import letter_tokenizer
from tests.vlm.helpers import assert_same_run
from tests.vlm.test_rollouts import letters, measured, questions
from vlm.answer_rewards import AnswerReward, Judgement, SpanReward
from vlm.critic import Critic
from vlm.policy import VisionLanguagePolicy
from vlm.ppo import judged_tokens, ppo_loss, targets, train
from vlm.ppo_config import PPOConfig, validate
from vlm.rollouts import Rollout

NAN = float("nan")


@pytest.fixture
def config(small_llava: str, tmp_path: Path) -> PPOConfig:
    return PPOConfig(
        model=small_llava, prompts=questions(tmp_path), reward="x", out=tmp_path / "run", epochs=3, samples_per_epoch=8,
        sample_batch_size=8, train_batch_size=4, inner_epochs=2, max_new_tokens=4, lora_rank=4, learning_rate=1e-2,
        save_every=10,
    )  # fmt: skip


def killed(after: int) -> AnswerReward:
    """A reward that stops the run when it is asked again after so many times."""
    calls = []

    def reward(rows: Sequence[Row]) -> list[Judgement]:
        calls.append(len(rows))
        if len(calls) > after:
            raise KeyboardInterrupt
        return letters(rows)

    return reward


@pytest.mark.parametrize("at", ["segments", "end"])
def test_the_reward_rises(config: PPOConfig, at: Any) -> None:
    how: dict[str, Any] = {"learning_rate": 5e-2, "lora_rank": 0, "samples_per_epoch": 32, "sample_batch_size": 32,
                           "train_batch_size": 32, "beta": 0.01, "epochs": 6}  # fmt: skip
    metrics = train(replace(config, reward_at=at, **how), reward=letters).metrics
    rewards = [line["reward_mean"] for line in metrics]
    assert rewards[-1] > rewards[0] + 1.5 and metrics[0]["kl"] == 0 < metrics[-1]["kl"]


def test_a_step_of_each_model_and_what_it_measures(model: str, config: PPOConfig) -> None:
    config = replace(config, model=model, epochs=1, inner_epochs=1, train_batch_size=8, entropy_weight=0.01)
    seen: list[dict[str, Any]] = []
    result = train(config, reward=letters, on_epoch=seen.append)
    assert result.metrics == seen and (config.out / "adapter_model.safetensors").is_file()
    (line,) = seen
    wanted = {
        "epoch", "samples", "seconds", "reward_mean", "reward_std", "kl", "beta", "clip_fraction", "approx_kl", "entropy",
        "value_loss", "explained_variance", "length_mean", "ended", "loss", "grad_norm", "updates", "abstained", "problems",
    }  # fmt: skip
    assert wanted <= line.keys() and (line["samples"], line["updates"], line["kl"]) == (8, 1, 0.0)
    # before the first update the policy is the one that answered, and the one at the start
    assert line["ratio_min"] == pytest.approx(1, abs=1e-4) == line["ratio_max"] and line["clip_fraction"] == 0
    assert line["loss"] == pytest.approx(-0.01 * line["entropy"], abs=1e-3)  # whitened advantages have mean 0
    assert line["explained_variance"] == pytest.approx(0) and line["grad_norm"] > 0


def test_resumed_equals_never_killed(config: PPOConfig, tmp_path: Path) -> None:
    config = replace(config, kl_target=1.0, kl_horizon=20, value_weight=0.1, save_every=1)
    whole = train(config, reward=letters)
    again = replace(config, out=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        train(again, reward=killed(2))
    resumed = train(replace(again, resume=True), reward=letters)
    assert_same_run(resumed, whole)
    assert len(whole.metrics) == 3


def test_parts_of_an_update_give_the_same(config: PPOConfig, tmp_path: Path) -> None:
    """Answers of several lengths, three at a time or all at once."""
    how: dict[str, Any] = {
        "epochs": 1,
        "inner_epochs": 1,
        "train_batch_size": 8,
        "value_weight": 0.5,
        "entropy_weight": 0.1,
    }
    lines = [
        train(replace(config, out=tmp_path / str(size), micro_batch_size=size, **how), reward=letters).metrics[0]
        for size in (None, 3)
    ]
    for name in ("loss", "grad_norm", "approx_kl"):
        assert [line[name] for line in lines] == pytest.approx([lines[0][name]] * 2, rel=1e-3, abs=1e-6)


def test_judged_tokens_by_hand(config: PPOConfig) -> None:
    policy = VisionLanguagePolicy.load(config.model)
    spelt = [letter_tokenizer()(text, add_special_tokens=False).input_ids for text in ("a b", "cd", "e")]
    tokens = [(*spelt[0], policy.ends[0]), tuple(spelt[1]), tuple(spelt[2])]
    judgements = [Judgement((SpanReward(0, 1, 1.0), SpanReward(1, 3, -2.0)), 0.5), Judgement((), 3.0)]
    judgements.append(Judgement((SpanReward(0, 1, NAN),), 1.0))
    rows = [Row("?", answer) for answer in ("a b", "cd", "e")]
    rollout = Rollout(rows, tokens, [True, False, False], judgements)
    config = replace(config, missing_end_penalty=0.25)
    expected = torch.tensor([[1.0, 0, -2, 0.5], [0, 2.75, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(judged_tokens(policy, rollout, config), expected)
    at_end = judged_tokens(policy, rollout, replace(config, reward_at="end"))
    torch.testing.assert_close(at_end, torch.tensor([[0, 0, 0, -0.5], [0, 2.75, 0, 0], [0, 0, 0, 0]]))


def test_targets_by_hand(config: PPOConfig) -> None:
    """Two answers of two tokens and of one, and one that nobody judged."""
    old = measured([[True, True], [True, False], [True, True]], [[-1.0, -2.0], [-1.0, 0.0], [-9.0, -9.0]],
                   [[-2.0, -1.0], [-1.0, 0.0], [-1.0, -1.0]])  # fmt: skip
    judged, values = (
        torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 0.0]]),
        torch.tensor([[0.5, 1.0], [1.0, 0.0], [0.0, 0.0]]),
    )
    rated = torch.tensor([True, True, False])
    found = targets(judged, old, values, rated, 0.1, config)
    last = 2 + 0.1 - 1.0  # log π − log π_ref is 1, −1 and 0
    first = 1 - 0.1 + 1.0 - 0.5 + 0.95 * last
    torch.testing.assert_close(found.returns[:2], torch.tensor([[first + 0.5, last + 1], [3.0, 0.0]]))
    kept = torch.tensor([first, last, 2.0])
    white = (kept - kept.mean()) / kept.std(correction=0)
    torch.testing.assert_close(found.advantages, torch.tensor([[white[0], white[1]], [white[2], 0], [0, 0]]))


def test_what_is_padded_does_not_count(config: PPOConfig) -> None:
    rewards, values = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0))
    padding = torch.zeros(1, 4)
    short = gae(rewards, values, discount=0.9)
    long = gae(torch.cat([rewards, padding], 1), torch.cat([values, padding], 1), discount=0.9)
    for one, other in zip(short, long, strict=True):
        torch.testing.assert_close(other, torch.cat([one, padding], 1))


def test_the_loss_by_hand() -> None:
    log_ratio, mask = torch.tensor([[0.0, 1.0], [-1.0, 5.0]]), torch.tensor([[True, True], [True, False]])
    advantages, entropies = torch.tensor([[1.0, 2.0], [-1.0, 9.0]]), torch.tensor([[1.0, 2.0], [3.0, 9.0]])
    loss, figures = ppo_loss(log_ratio, torch.zeros(2, 2), advantages, entropies, mask, 0.2, 0.1)
    assert float(loss) == pytest.approx(-(1 + 2 * 1.2 - 0.8) / 3 - 0.1 * 2)
    assert figures["clip_fraction"] == pytest.approx(2 / 3)


def test_the_value_loss_by_hand() -> None:
    mask = torch.tensor([[True, True, True, False]])
    values, old = torch.tensor([[1.0, 0.1, 1.0, 9.0]]), torch.zeros(1, 4)
    returns = torch.tensor([[2.0, 0.0, 0.5, 0.0]])
    loss, figures = value_loss(values, old, returns, 0.2, mask)
    expected = 0.5 * (1.8**2 + 0.1**2 + 0.5**2) / 3  # the clipped 0.2, the value itself, the value itself
    assert float(loss) == pytest.approx(expected) == figures["value_loss"]
    assert explained_variance(returns, returns, mask) == 1 and explained_variance(old, returns, mask) == 0
    assert explained_variance(values, old, mask) == 0  # nothing to explain
    assert explained_variance(returns / 2, returns, mask) == pytest.approx(0.75)


def test_the_critic_learns_what_states_foretell() -> None:
    generator = torch.Generator().manual_seed(0)
    states, mask = torch.randn(40, 5, 8, generator=generator), torch.ones(40, 5, dtype=torch.bool)
    mask[:20, 3:] = False
    returns = (100 + 30 * states[..., 0]) * mask
    critic = Critic(8, torch.device("cpu"), learning_rate=0.3, clip=0.0, epochs=60, batch_size=10)
    critic.fit_scale(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))
    assert critic.scale == 1  # no spread, no unit
    critic.scale = 30.0
    start = critic.values(states, mask)
    assert (start == 0).all()
    rows = torch.arange(0, 40, 2)
    critic.learn(states, start, returns, mask, rows, generator)
    values = critic.values(states, mask)
    assert explained_variance(values, returns, mask) > 0.7 and (values[~mask] == 0).all()
    again = Critic(8, torch.device("cpu"), learning_rate=0.3, clip=0.0, epochs=60, batch_size=10)
    again.load_state_dict(critic.state_dict())
    assert torch.equal(again.values(states, mask), values)


def test_its_unit_is_the_spread_of_what_is_to_come() -> None:
    critic = Critic(2, torch.device("cpu"), learning_rate=1.0, clip=0.0, epochs=1, batch_size=1)
    mask = torch.tensor([[True, True, False]])
    critic.fit_scale(torch.tensor([[4.0, 1.0, 0.0]]), mask)
    assert critic.scale == pytest.approx(2)  # of 5 and 1
    critic.fit_scale(torch.tensor([[40.0, 1.0, 0.0]]), mask)
    assert critic.scale == pytest.approx(2)


def test_an_answer_that_nobody_judges_is_left_out(config: PPOConfig, tmp_path: Path) -> None:
    def some(share: int) -> AnswerReward:
        def reward(rows: Sequence[Row]) -> list[Judgement]:
            return [each if i % share else Judgement((), NAN) for i, each in enumerate(letters(rows))]

        return reward

    (line,) = train(replace(config, epochs=1), reward=some(3)).metrics
    assert line["abstained"] == 3 and line["samples"] == 8 and line["loss"] == line["loss"]
    with pytest.raises(UserError, match=r"the reward \(8 of 8 are NaN, 0 infinite\) is not a finite number in epoch 0"):
        train(replace(config, out=tmp_path / "other"), reward=some(1))


def test_the_weight_of_the_kl_follows_its_target(config: PPOConfig, tmp_path: Path) -> None:
    adapted = train(replace(config, kl_target=100.0, kl_horizon=80, epochs=2), reward=letters).metrics
    betas = [line["beta"] for line in adapted]
    assert betas == pytest.approx([0.05, 0.05 * 0.98])
    constant = train(replace(config, out=tmp_path / "constant", epochs=2), reward=letters).metrics
    assert [line["beta"] for line in constant] == [0.05, 0.05]


def test_a_budget_stops_before_the_kl_exceeds_it(config: PPOConfig) -> None:
    result = train(replace(config, learning_rate=5e-2, kl_budget=0.5, epochs=8), reward=letters)
    assert "over the budget of 0.5" in result.stopped and len(result.metrics) < 8


def test_the_value_loss_reaches_the_policy_only_where_it_should(config: PPOConfig, tmp_path: Path) -> None:
    """In the first epoch the head is 0, and so are its gradients to the states."""
    metrics, weights = [], []
    for weight in (0.0, 5.0):
        config = replace(config, out=tmp_path / str(weight), epochs=2, value_weight=weight)
        metrics.append(train(config, reward=letters).metrics)
        weights.append(load_file(config.out / "adapter_model.safetensors"))
    assert metrics[0][1]["kl"] == metrics[1][1]["kl"] != 0  # before the second epoch's updates
    assert not all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_bad_input_is_told_in_one_line(config: PPOConfig) -> None:
    outside: list[tuple[dict[str, Any], str]] = [
        ({"samples_per_epoch": 0}, "--samples-per-epoch got 0, allowed is 1 or more"),
        ({"beta": -0.1}, "--beta got -0.1, allowed is 0 or more"),
        ({"kl_target": 0.0}, "--kl-target got 0.0, allowed is above 0, or leave it out"),
        ({"kl_target": 1.0, "beta": 0.0}, "--beta got 0 with a --kl-target, allowed is above 0"),
        ({"gae_lambda": 1.5}, "--gae-lambda got 1.5, allowed is 0 up to 1"),
        ({"value_learning_rate": 0.0}, "--value-learning-rate got 0.0, allowed is above 0"),
    ]  # fmt: skip
    for change, words in outside:
        with pytest.raises(UserError, match=words):
            validate(replace(config, **change))
    unusable: list[tuple[dict[str, Any], str]] = [
        ({"reward": "nowhere:nothing"}, "--reward got 'nowhere:nothing'"),
        ({"prompts": config.prompts.with_name("none.jsonl")}, "cannot read .*none.jsonl"),
        ({"max_new_tokens": 5000}, "2 of 2 prompts have no room for --max-new-tokens 5000"),
    ]  # fmt: skip
    for change, words in unusable:
        with pytest.raises(UserError, match=words):
            train(replace(config, **change), reward=None if "reward" in change else letters)
        assert not config.out.exists()


def test_the_command_line_has_the_papers_defaults(tmp_path: Path) -> None:
    given = ["--model", "tiny-llava", "--prompts", "p.jsonl", "--reward", "a:b", "--out", str(tmp_path)]
    config = parse(PPOConfig, given, "mmrlhf vlm ppo")
    assert (config.discount, config.gae_lambda, config.clip_range, config.value_clip) == (1, 0.95, 0.2, 0.2)
