"""NLPO is PPO within a mask that is renewed now and then; it goes on after a kill as if nothing had been."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrlhf.config import parse
from mmrlhf.errors import UserError
from mmrlhf.rl import kl_k1
from tests.vlm.helpers import assert_same_run, without_times
from tests.vlm.test_ppo import killed
from tests.vlm.test_rollouts import letters, moved, questions
from vlm import ppo
from vlm.masked_policy import MaskedPolicy
from vlm.nlpo import Masking, NLPOConfig, train, unmasked_kl_now, unmasked_log_probs, validate
from vlm.policy import VisionLanguagePolicy
from vlm.ppo_config import PPOConfig
from vlm.preference_data import read_prompts
from vlm.rollouts import answer, answer_kl, measure


@pytest.fixture
def config(small_llava: str, tmp_path: Path) -> NLPOConfig:
    return NLPOConfig(
        model=small_llava, prompts=questions(tmp_path), reward="x", out=tmp_path / "run", epochs=3, samples_per_epoch=8,
        sample_batch_size=8, train_batch_size=4, inner_epochs=2, max_new_tokens=4, lora_rank=4, learning_rate=1e-2,
        save_every=10, mask_every=2, top_p=0.7,
    )  # fmt: skip


def test_the_reward_rises(config: NLPOConfig) -> None:
    how: dict[str, Any] = {"learning_rate": 5e-2, "lora_rank": 0, "samples_per_epoch": 32, "sample_batch_size": 32,
                           "train_batch_size": 32, "beta": 0.01, "epochs": 6, "top_p": 0.9}  # fmt: skip
    metrics = train(replace(config, **how), reward=letters).metrics
    rewards = [line["reward_mean"] for line in metrics]
    assert rewards[-1] > rewards[0] + 1.5 and abs(metrics[0]["kl"]) < 1e-5 < metrics[-1]["kl"]
    assert all(0 < line["nucleus_mass"] <= 1 for line in metrics)


def test_a_step_of_each_model_and_what_it_measures(model: str, config: NLPOConfig) -> None:
    (line,) = train(replace(config, model=model, epochs=1, inner_epochs=1, train_batch_size=8), reward=letters).metrics
    # before the first update the policy is the one that answered, so that the mask is its own nucleus
    assert line["ratio_min"] == pytest.approx(1, abs=1e-4) == line["ratio_max"]
    assert line["kl"] == pytest.approx(0, abs=1e-5) and 0.7 <= line["nucleus_mass"] < 0.95 and line["grad_norm"] > 0


def test_the_whole_vocabulary_is_ppo(config: NLPOConfig, tmp_path: Path) -> None:
    masked = train(replace(config, top_p=1.0), reward=letters).metrics
    own = {name: getattr(config, name) for name in PPOConfig.__dataclass_fields__ if name != "_"}
    plain = ppo.train(PPOConfig(**own | {"out": tmp_path / "ppo"}), reward=letters).metrics
    for one, other in zip(without_times(masked), without_times(plain), strict=True):
        assert one.pop("nucleus_mass") == pytest.approx(1, abs=1e-5)
        assert one.pop("problems") == other.pop("problems")
        assert one == pytest.approx(other, rel=1e-2, abs=1e-3)


def test_the_mask_is_renewed_every_so_many_epochs(config: NLPOConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """How far the masking policy is from the policy when an epoch begins."""
    apart: list[float] = []
    was = MaskedPolicy.generate

    def look(self: MaskedPolicy, *given: Any, **how: Any) -> Any:
        own, lagged = dict(self.model.named_parameters()), dict(self.masking.model.named_parameters())
        apart.append(max(float((own[name] - lagged[name]).detach().abs().max()) for name in own))
        return was(self, *given, **how)

    monkeypatch.setattr(MaskedPolicy, "generate", look)
    train(replace(config, epochs=5), reward=letters)
    assert [each > 0 for each in apart] == [False, True, False, True, False]


def test_resumed_equals_never_killed(config: NLPOConfig, tmp_path: Path) -> None:
    """It goes on with an epoch whose mask is that of an earlier policy, and then with one that renews it."""
    config = replace(config, save_every=1)
    whole = train(config, reward=letters)
    again = replace(config, out=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        train(again, reward=killed(1))
    assert_same_run(train(replace(again, resume=True), reward=letters), whole)


def test_masking_remembers_what_the_policy_was(small_llava: str) -> None:
    policy = VisionLanguagePolicy.load(small_llava, lora_rank=4)
    masking = Masking(policy)
    moved(policy)
    masking.renew()
    state, before = masking.state_dict(), [weight.detach().clone() for weight in policy.parameters()]
    assert state.keys() == policy.state_dict().keys()
    moved(policy)
    other = Masking(policy)
    other.load_state_dict(state)
    assert all(torch.equal(one, two) for one, two in zip(other.weights.values(), before, strict=True))
    assert not any(torch.equal(one, two) for one, two in zip(policy.parameters(), before, strict=True))


def test_the_kl_is_that_of_the_policy_without_the_mask(config: NLPOConfig) -> None:
    loaded = VisionLanguagePolicy.load(config.model, lora_rank=4)
    masking = Masking(loaded)
    policy = MaskedPolicy(loaded, masking.lagged, config.top_p)
    moved(policy)
    rollout = answer(policy, read_prompts(config.prompts) * 8, letters, config, 0)
    old, plain = (
        measure(policy, rollout, config),
        measure(VisionLanguagePolicy(policy.model, policy.reader), rollout, config),
    )
    unmasked = unmasked_log_probs(policy, rollout, config)
    torch.testing.assert_close(unmasked, plain.log_probs)
    torch.testing.assert_close(old.reference, plain.reference)
    assert (old.log_probs >= unmasked - 1e-5).all() and not torch.allclose(old.log_probs, unmasked)
    same = answer_kl(unmasked, old.reference)
    assert unmasked_kl_now(policy, rollout, old, config) == pytest.approx(same, rel=1e-4) and abs(same) < 1e3
    moved(policy)
    now, free = measure(policy, rollout, config).log_probs, unmasked_log_probs(policy, rollout, config)
    by_hand = sum(
        float((now[i, j] - old.log_probs[i, j]).exp() * kl_k1(free[i, j], old.reference[i, j]))
        for i, tokens in enumerate(rollout.tokens) for j in range(len(tokens))
    ) / len(rollout.tokens)  # fmt: skip
    assert unmasked_kl_now(policy, rollout, old, config) == pytest.approx(by_hand, rel=1e-4)


def test_a_budget_stops_before_the_kl_exceeds_it(config: NLPOConfig) -> None:
    result = train(replace(config, learning_rate=5e-2, kl_budget=0.5, epochs=8), reward=letters)
    assert "over the budget of 0.5" in result.stopped and len(result.metrics) < 8


def test_bad_input_is_told_in_one_line(config: NLPOConfig) -> None:
    outside: list[tuple[dict[str, Any], str]] = [
        ({"top_p": 0.0}, "--top-p got 0.0, allowed is above 0 and up to 1"),
        ({"top_p": 1.1}, "--top-p got 1.1, allowed is above 0 and up to 1"),
        ({"mask_every": 0}, "--mask-every got 0, allowed is 1 or more"),
        ({"beta": -0.1}, "--beta got -0.1, allowed is 0 or more"),
    ]
    for change, words in outside:
        with pytest.raises(UserError, match=words):
            validate(replace(config, **change))
        assert not config.out.exists()


def test_the_command_line_has_the_papers_defaults(tmp_path: Path) -> None:
    given = ["--model", "tiny-llava", "--prompts", "p.jsonl", "--reward", "a:b", "--out", str(tmp_path)]
    config = parse(NLPOConfig, given, "mmrlhf vlm nlpo")
    assert (config.top_p, config.mask_every) == (0.9, 5)
