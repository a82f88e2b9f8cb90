"""A2C learns from each answer once, by the plain policy gradient; it goes on after a kill as if nothing had been."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrlhf.config import parse
from mmrlhf.errors import UserError
from tests.vlm.helpers import assert_same_run
from tests.vlm.test_ppo import killed
from tests.vlm.test_rollouts import letters, questions
from vlm.a2c import A2CConfig, a2c_loss, problems, train, validate
from vlm.ppo import ppo_loss


@pytest.fixture
def config(small_llava: str, tmp_path: Path) -> A2CConfig:
    return A2CConfig(
        model=small_llava, prompts=questions(tmp_path), reward="x", out=tmp_path / "run", epochs=3, samples_per_epoch=8,
        sample_batch_size=8, train_batch_size=4, max_new_tokens=4, lora_rank=4, learning_rate=1e-2, save_every=10,
    )  # fmt: skip


def test_the_reward_rises(config: A2CConfig) -> None:
    how: dict[str, Any] = {"learning_rate": 5e-2, "lora_rank": 0, "samples_per_epoch": 32, "sample_batch_size": 32,
                           "train_batch_size": 32, "beta": 0.01, "epochs": 8}  # fmt: skip
    metrics = train(replace(config, **how), reward=letters).metrics
    rewards = [line["reward_mean"] for line in metrics]
    assert rewards[-1] > rewards[0] + 1 and metrics[0]["kl"] == 0 < metrics[-1]["kl"]
    assert all(line["updates"] == 1 and line["approx_kl"] == pytest.approx(0, abs=1e-5) for line in metrics)


def test_the_loss_by_hand(config: A2CConfig) -> None:
    log_probs, mask = torch.tensor([[-1.0, -2.0], [-3.0, 5.0]]), torch.tensor([[True, True], [True, False]])
    old = torch.tensor([[-1.0, -3.0], [-3.0, 0.0]])
    advantages, entropies = torch.tensor([[1.0, 2.0], [-1.0, 9.0]]), torch.tensor([[1.0, 2.0], [3.0, 9.0]])
    loss, figures = a2c_loss(log_probs, old, advantages, entropies, mask, replace(config, entropy_weight=0.1))
    assert float(loss) == pytest.approx(-(-1 - 4 + 3) / 3 - 0.1 * 2)
    assert figures["approx_kl"] == pytest.approx((2.718282 - 1 - 1) / 3)


def test_its_gradient_is_that_of_ppo_where_the_policy_is_the_old_one(config: A2CConfig) -> None:
    generator = torch.Generator().manual_seed(0)
    old, advantages = torch.randn(2, 3, 4, generator=generator)
    mask = torch.rand(3, 4, generator=generator) < 0.7
    gradients = []
    for of_a2c in (True, False):
        log_probs = old.clone().requires_grad_()
        given = (log_probs, old, advantages, torch.zeros(3, 4), mask)
        loss = a2c_loss(*given, config)[0] if of_a2c else ppo_loss(*given, 0.2, 0.0)[0]
        gradients.append(torch.autograd.grad(loss, log_probs)[0])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert (gradients[0][~mask] == 0).all() and gradients[0].abs().sum() > 0


def test_resumed_equals_never_killed(config: A2CConfig, tmp_path: Path) -> None:
    config = replace(config, value_weight=0.1, save_every=1)
    whole = train(config, reward=letters)
    again = replace(config, out=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        train(again, reward=killed(2))
    assert_same_run(train(replace(again, resume=True), reward=letters), whole)
    assert [line["updates"] for line in whole.metrics] == [2, 2, 2] and whole.metrics[0]["approx_kl"] > 0


def test_nothing_is_said_of_clipped_ratios(config: A2CConfig) -> None:
    line = {"reward_mean": 1.0, "reward_std": 0.0, "updates": 4.0, "ended": 0.5, "kl": 0.0, "length_mean": 3.0}
    assert problems([line] * 3, config).keys() == {"flat reward"}


def test_bad_input_is_told_in_one_line(config: A2CConfig) -> None:
    outside: list[tuple[dict[str, Any], str]] = [
        ({"inner_epochs": 2}, "--inner-epochs got 2, but a2c learns from an answer once"),
        ({"clip_range": 0.1}, "--clip-range got 0.1, but a2c .* clips nothing: leave it out, or use vlm ppo"),
        ({"entropy_weight": -1.0}, "--entropy-weight got -1.0, allowed is 0 or more"),
    ]  # fmt: skip
    for change, words in outside:
        with pytest.raises(UserError, match=words):
            validate(replace(config, **change))
    with pytest.raises(UserError, match="--reward got 'nowhere:nothing'"):
        train(replace(config, reward="nowhere:nothing"))
    assert not config.out.exists()


def test_the_command_line_makes_one_update_of_an_epoch(tmp_path: Path) -> None:
    given = ["--model", "tiny-llava", "--prompts", "p.jsonl", "--reward", "a:b", "--out", str(tmp_path)]
    config = parse(A2CConfig, given, "mmrlhf vlm a2c")
    validate(config)
    assert config.samples_per_epoch == config.train_batch_size and config.inner_epochs == 1
