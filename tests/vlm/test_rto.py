"""RTO learns what a DPO policy says of each token, alone or beside a reward; it takes no policy that does not fit."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrlhf.config import parse
from mmrlhf.errors import UserError
from mmrlhf.rewards.language.inputs import Row
from tests.vlm.helpers import assert_same_run, comparisons
from tests.vlm.test_ppo import killed
from tests.vlm.test_rollouts import letters, moved, questions
from vlm import dpo
from vlm.answer_rewards import Judgement
from vlm.policy import VisionLanguagePolicy
from vlm.preference_data import read_prompts
from vlm.rollouts import answer, measure
from vlm.rto import RTOConfig, implied_rewards, load_dpo, train, unjudged, validate


@pytest.fixture(scope="module")
def trained(small_llava: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders that vlm dpo wrote, of a LoRA and of all weights: "A B A B" is better than "A B x B"."""
    folder = tmp_path_factory.mktemp("dpo")
    data = comparisons(folder)
    how: dict[str, Any] = {"epochs": 8, "train_batch_size": 6, "validation": 0.0}
    for rank, rate in ((4, 2e-2), (0, 3e-3)):
        config = dpo.DPOConfig(
            model=small_llava, data=data, out=folder / str(rank), lora_rank=rank, learning_rate=rate, **how
        )
        dpo.train(config)
    return {rank: folder / str(rank) for rank in (4, 0)}


@pytest.fixture
def config(small_llava: str, trained: dict[int, Path], tmp_path: Path) -> RTOConfig:
    return RTOConfig(
        model=small_llava, prompts=questions(tmp_path), dpo=trained[4], out=tmp_path / "run", epochs=3, samples_per_epoch=8,
        sample_batch_size=8, train_batch_size=4, inner_epochs=2, max_new_tokens=4, lora_rank=4, learning_rate=1e-2,
        save_every=10,
    )  # fmt: skip


@pytest.mark.parametrize("whole", [0, 4])
def test_what_the_dpo_policy_says_of_an_answer_rises(config: RTOConfig, trained: dict[int, Path], whole: int) -> None:
    how: dict[str, Any] = {"learning_rate": 3e-2, "lora_rank": 0, "samples_per_epoch": 32, "sample_batch_size": 32,
                           "train_batch_size": 32, "beta": 0.001, "epochs": 6, "dpo": trained[whole]}  # fmt: skip
    metrics = train(replace(config, **how)).metrics
    rewards = [line["dpo_reward_mean"] for line in metrics]
    assert rewards[-1] > rewards[0] + 0.05 and metrics[0]["kl"] == 0 < metrics[-1]["kl"]
    assert all(line["reward_mean"] == line["dpo_reward_mean"] and line["reward_std"] > 0 for line in metrics)
    assert "flat reward" not in metrics[-1]["problems"]


def test_a_reward_beside_it_rises_too(config: RTOConfig) -> None:
    how: dict[str, Any] = {"learning_rate": 5e-2, "lora_rank": 0, "samples_per_epoch": 32, "sample_batch_size": 32,
                           "train_batch_size": 32, "epochs": 6}  # fmt: skip
    metrics = train(replace(config, **how), reward=letters).metrics
    assert metrics[-1]["reward_mean"] > metrics[0]["reward_mean"] + 1
    assert metrics[0]["reward_mean"] != metrics[0]["dpo_reward_mean"]


@pytest.mark.parametrize("rank", [4, 0])
@pytest.mark.parametrize("whole", [4, 0])
def test_its_rewards_by_hand(config: RTOConfig, trained: dict[int, Path], rank: int, whole: int) -> None:
    """The log-probabilities of two models that know nothing of this run, whatever the policy has become."""
    config = replace(config, dpo=trained[whole], temperature=0.8, lora_rank=rank)
    policy = VisionLanguagePolicy.load(config.model, lora_rank=rank)
    judge = load_dpo(config, policy)
    moved(policy)
    rollout = answer(policy, read_prompts(config.prompts) * 3, letters, config, 0)
    old = measure(policy, rollout, config)
    found = implied_rewards(judge, rollout, old, config)
    given = {"adapter": trained[4]} if whole else {"model": str(trained[0] / "model")}
    policies = [VisionLanguagePolicy.load(**{"model": config.model} | each) for each in (given, {})]
    batch = policy.encode(rollout.rows, rollout.tokens)
    ratios = policies[0].log_probs(batch, temperature=0.8) - policies[1].log_probs(batch, temperature=0.8)
    torch.testing.assert_close(found, 0.05 * ratios.detach(), atol=1e-5, rtol=1e-3)
    assert found.abs().sum() > 0.01 and (found[~old.mask] == 0).all()
    near = implied_rewards(judge, rollout, old, replace(config, dpo_clip=0.002))
    torch.testing.assert_close(near, found.clamp(-0.002, 0.002))
    assert not torch.equal(near, found)


def test_what_a_token_earns(config: RTOConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The DPO policy's part, and the reward of the whole at the last token, limited and then weighted."""
    from vlm import rto

    monkeypatch.setattr(
        rto, "implied_rewards", lambda judge, rollout, old, config: torch.full(old.mask.shape, 0.25) * old.mask
    )
    seen: list[torch.Tensor] = []
    was = rto.learn_epoch

    def look(actor: Any, sampled: Any, judged: torch.Tensor, *given: Any, **how: Any) -> None:
        last = torch.tensor([len(tokens) - 1 for tokens in sampled.rollout.tokens])
        expected = 0.25 * sampled.old.mask
        expected[torch.arange(len(last)), last] += 0.5 * 2.0
        torch.testing.assert_close(judged, expected)
        seen.append(judged)
        was(actor, sampled, judged, *given, **how)

    monkeypatch.setattr(rto, "learn_epoch", look)

    def ten(rows: Sequence[Row]) -> list[Judgement]:
        return [Judgement((), 10.0) for _ in rows]

    train(replace(config, epochs=1, reward_weight=0.5, reward_clip=2.0), reward=ten)
    assert len(seen) == 1


def test_an_answer_that_nobody_judges_is_left_out(config: RTOConfig) -> None:
    def some(rows: Sequence[Row]) -> list[Judgement]:
        return [each if i % 3 else Judgement((), float("nan")) for i, each in enumerate(letters(rows))]

    (line,) = train(replace(config, epochs=1), reward=some).metrics
    assert (
        line["abstained"] == 3 and line["loss"] == line["loss"] and line["dpo_reward_mean"] == line["dpo_reward_mean"]
    )
    assert unjudged([Row("?")]) == [Judgement(())]


def test_resumed_equals_never_killed(config: RTOConfig, tmp_path: Path) -> None:
    config = replace(config, save_every=1)
    whole = train(config, reward=letters)
    again = replace(config, out=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        train(again, reward=killed(2))
    assert_same_run(train(replace(again, resume=True), reward=letters), whole)


def test_a_dpo_policy_that_changed_is_another_run(config: RTOConfig, tmp_path: Path) -> None:
    folder = tmp_path / "dpo"
    shutil.copytree(config.dpo, folder)
    config = replace(config, dpo=folder, epochs=1)
    train(config)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="holds a run with other settings"):
        train(replace(config, resume=True))


def test_a_dpo_policy_that_does_not_fit(
    config: RTOConfig, trained: dict[int, Path], small_qwen_vl: str, tmp_path: Path
) -> None:
    broken, other, empty = tmp_path / "broken", tmp_path / "other", tmp_path / "empty"
    empty.mkdir()
    for folder in (broken, other):
        shutil.copytree(trained[4], folder)
    (broken / "adapter_config.json").unlink()
    settings = json.loads((other / "config.json").read_text()) | {"adapter": "sft", "adapter_sha256": "0"}
    (other / "config.json").write_text(json.dumps(settings))
    unfitting = {
        tmp_path / "nowhere": "it holds no weights",
        empty: "it holds no weights",
        broken: "adapter_config.json is missing",
        other: "it began from the adapter sft, this run begins from None",
        Path(small_qwen_vl): "it is another model, or has another vocabulary",
    }
    for folder, words in unfitting.items():
        with pytest.raises(
            UserError, match=f"--dpo got '{folder}', allowed is the --out folder of .*{words}"
        ) as caught:
            train(replace(config, dpo=folder))
        assert "\n" not in str(caught.value) and not config.out.exists()
    with pytest.raises(UserError, match=f"--dpo got '{trained[4]}', allowed is .*does not fit the model"):
        train(replace(config, model=small_qwen_vl))
    (other / "config.json").unlink()
    train(replace(config, dpo=other, epochs=1))  # without its run, it is believed


def test_bad_input_is_told_in_one_line(config: RTOConfig) -> None:
    outside: list[tuple[dict[str, Any], str]] = [
        ({"dpo_weight": 0.0}, "--dpo-weight got 0.0, allowed is above 0: without it this is vlm ppo"),
        ({"dpo_clip": -1.0}, "--dpo-clip got -1.0, allowed is 0 or more"),
        ({"reward_weight": -1.0}, "--reward-weight got -1.0, allowed is 0 or more"),
        ({"gae_lambda": 1.5}, "--gae-lambda got 1.5, allowed is 0 up to 1"),
    ]
    for change, words in outside:
        with pytest.raises(UserError, match=words):
            validate(replace(config, **change))
    with pytest.raises(UserError, match="--reward got 'nowhere:nothing'"):
        train(replace(config, reward="nowhere:nothing"))
    assert not config.out.exists()


def test_the_command_line_needs_no_reward(tmp_path: Path) -> None:
    given = ["--model", "tiny-llava", "--prompts", "p.jsonl", "--dpo", "d", "--out", str(tmp_path)]
    config = parse(RTOConfig, given, "mmrlhf vlm rto")
    assert (config.dpo_weight, config.beta, config.reward, config.reward_at) == (0.05, 0.01, "", "end")
