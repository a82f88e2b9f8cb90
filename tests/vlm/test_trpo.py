"""TRPO steps as far as its bound allows, up the natural gradient; it learns, and goes on after a kill as if nothing had been."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from mmrlhf.config import parse
from mmrlhf.errors import UserError
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.trust_region import flat, write
from tests.vlm.helpers import assert_same_run
from tests.vlm.test_ppo import killed
from tests.vlm.test_rollouts import letters, moved, questions
from vlm.answer_rewards import Judgement
from vlm.policy import LEAST, VisionLanguagePolicy
from vlm.ppo import Targets
from vlm.preference_data import read_prompts
from vlm.rollouts import Rollout, answer, measure, prompts_of
from vlm.training import begin
from vlm.trpo import (
    Epoch,
    TRPOConfig,
    curvature_along,
    gradient_over,
    kept_head,
    problems,
    surrogate,
    surrogate_and_kl,
    surrogate_loss,
    token_kl,
    train,
    validate,
)


class NoBar:
    """Shows nothing."""

    def update(self, done: int) -> None: ...


@pytest.fixture
def config(small_llava: str, tmp_path: Path) -> TRPOConfig:
    return TRPOConfig(
        model=small_llava, prompts=questions(tmp_path), reward="x", out=tmp_path / "run", epochs=1, samples_per_epoch=8,
        sample_batch_size=8, train_batch_size=8, max_new_tokens=4, lora_rank=4, max_kl=0.05, cg_iterations=4, save_every=10,
    )  # fmt: skip


def log_distributions(policy: VisionLanguagePolicy, rollout: Rollout, temperature: float) -> Float[Tensor, "n v"]:
    """log π of the whole vocabulary at every token of the answers, one after the other, from the model's own logits."""
    found = []
    for row, tokens in zip(rollout.rows, rollout.tokens, strict=True):
        batch = policy.encode([row], [tokens])
        logits = policy.network(**batch.inputs).logits[0, int(batch.starts) - 1 :][: len(tokens)].float() / temperature
        logits[:, policy.banned] = LEAST
        found.append(logits.log_softmax(-1))
    return torch.cat(found)


def an_epoch(policy: VisionLanguagePolicy, config: TRPOConfig) -> Epoch:
    """Answers with advantages at random; one of them nobody rated."""
    asked = prompts_of(read_prompts(config.prompts), 0, config.samples_per_epoch, config.seed)
    rollout = answer(policy, asked, letters, config, 0)
    old = measure(policy, rollout, config, states=True)
    advantages = torch.randn(old.mask.shape, generator=torch.Generator().manual_seed(0)) * old.mask
    rows = torch.tensor([i for i in range(len(rollout.rows)) if i != 2])
    return Epoch(rollout, rows, old, Targets(advantages, advantages, advantages), kept_head(policy))


def rated_only(part: Epoch) -> Rollout:
    return Rollout(*([column[i] for i in part.rows.tolist()] for column in part.rollout))


def test_the_reward_rises(config: TRPOConfig) -> None:
    how: dict[str, Any] = {"lora_rank": 0, "samples_per_epoch": 64, "sample_batch_size": 64, "train_batch_size": 64,
                           "beta": 0.01, "epochs": 7, "max_kl": 1.0, "damping": 0.3}  # fmt: skip
    metrics = train(replace(config, **how), reward=letters).metrics
    rewards = [line["reward_mean"] for line in metrics]
    assert sum(rewards[-2:]) / 2 > rewards[0] + 0.8 and metrics[0]["kl"] == 0 < metrics[-1]["kl"]
    assert all(0 < line["kl_step"] <= 1 and line["surrogate"] > 0 for line in metrics if line["step"])


def test_a_step_of_each_model_and_what_it_measures(model: str, config: TRPOConfig) -> None:
    seen: list[dict[str, Any]] = []
    result = train(replace(config, model=model), reward=letters, on_epoch=seen.append)
    assert result.metrics == seen and (config.out / "adapter_model.safetensors").is_file()
    (line,) = seen
    wanted = {
        "epoch", "samples", "seconds", "reward_mean", "reward_std", "kl", "beta", "entropy", "value_loss", "explained_variance",
        "length_mean", "ended", "grad_norm", "updates", "abstained", "problems", "step", "halvings", "kl_step", "surrogate",
    }  # fmt: skip
    assert wanted <= line.keys() and (line["samples"], line["updates"], line["kl"]) == (8, 1, 0.0)
    assert line["step"] == 0.5 ** line["halvings"] and line["surrogate"] > 0 and line["grad_norm"] > 0
    # the step is as long as the bound allows, up to third order, or half of that …
    assert 0.5 * 0.05 * line["step"] ** 2 < line["kl_step"] <= 0.05


@pytest.mark.parametrize("rank", [0, 4])
def test_the_kl_of_the_step_is_that_of_the_whole_distributions(config: TRPOConfig, rank: int) -> None:
    """From the model before and after, each with its own logits; with the last layer trained too, and not."""
    config = replace(config, lora_rank=rank, temperature=0.8, max_kl=0.3)
    (line,) = train(config, reward=letters).metrics
    before = VisionLanguagePolicy.load(config.model)
    trained: dict[str, Any] = (
        {"model": str(config.out / "model")} if rank == 0 else {"model": config.model, "adapter": config.out}
    )
    after = VisionLanguagePolicy.load(**trained)
    asked = prompts_of(read_prompts(config.prompts), 0, config.samples_per_epoch, config.seed)
    rollout = answer(before, asked, letters, config, 0)
    with torch.no_grad():
        old, new = (log_distributions(policy, rollout, 0.8) for policy in (before, after))
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=old), torch.distributions.Categorical(logits=new)
    )
    assert line["kl_step"] == pytest.approx(float(expected.mean()), rel=1e-3) and line["kl_step"] > 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_curvature_is_the_fisher_information(config: TRPOConfig, checkpointing: bool) -> None:
    """F v = Jᵀ (diag p − p pᵀ) J v, J the Jacobian of the logits: J v by differences, Jᵀ by a backward pass of the logits."""
    config = replace(config, temperature=0.7, micro_batch_size=3, gradient_checkpointing=checkpointing)
    policy = moved(VisionLanguagePolicy.load(config.model, lora_rank=4, gradient_checkpointing=checkpointing))
    part, weights = an_epoch(policy, config), policy.parameters()
    run = begin("trpo", config, [], policy=policy)
    start = flat(weights, weights)
    vector = torch.randn(start.shape, generator=torch.Generator().manual_seed(1))
    found = curvature_along(run, part, NoBar(), vector)
    ends = []
    for sign in (1, -1):
        write(weights, start + sign * 1e-3 * vector)
        with torch.no_grad():
            ends.append(log_distributions(policy, rated_only(part), 0.7))
    write(weights, start)
    along = (ends[0] - ends[1]) / 2e-3
    at = log_distributions(policy, rated_only(part), 0.7)
    chance = at.detach().exp()
    turned = chance * (along - (chance * along).sum(-1, keepdim=True)) / len(at)
    gradients = torch.autograd.grad(at, weights, grad_outputs=turned, allow_unused=True)
    expected = flat(weights, gradients)
    assert float((found - expected).norm() / expected.norm()) < 1e-2
    assert float(vector @ found) == pytest.approx(float((chance * along.square()).sum(-1).mean()), rel=1e-2)


def test_the_gradient_is_the_policy_gradient(config: TRPOConfig) -> None:
    """Of Σ log π · A over tokens: where all ratios are 1, that is the surrogate's. An answer without a rating has no say."""
    policy = moved(VisionLanguagePolicy.load(config.model, lora_rank=4))
    part, weights = an_epoch(policy, config), policy.parameters()
    rollout = rated_only(part)
    log_probs = log_distributions(policy, rollout, 1.0)
    chosen = log_probs.gather(1, torch.tensor([[token] for tokens in rollout.tokens for token in tokens])).squeeze(1)
    gains = part.goal.advantages[part.rows][part.old.mask[part.rows]]
    expected = flat(weights, torch.autograd.grad((chosen * gains).mean(), weights, allow_unused=True))
    for size in (None, 3):
        run = begin("trpo", replace(config, micro_batch_size=size, out=config.out / str(size)), [], policy=policy)
        found = -gradient_over(run, part, partial(surrogate_loss, policy, part, config), NoBar())
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    reached, apart = surrogate_and_kl(policy, part, config)
    assert reached == pytest.approx(float(gains.mean()), abs=1e-4) and apart == pytest.approx(0, abs=1e-5)
    assert all(weight.grad is None for weight in weights)  # nothing is left for the next


def test_the_surrogate_by_hand() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    ratios = torch.tensor([[1.0, 2.0], [0.5, 9.0]])
    advantages = torch.tensor([[1.0, -1.0], [4.0, 9.0]])
    assert float(surrogate(ratios.log(), torch.zeros(2, 2), advantages, mask)) == pytest.approx(1 / 3)


def test_the_kl_of_a_token_by_hand(small_llava: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a table of logits that is held in parts, and all at once; picture tokens have no part in it."""
    policy = VisionLanguagePolicy.load(small_llava)
    head = policy.network.get_output_embeddings()
    old, new = torch.randn(2, 5, policy.width, generator=torch.Generator().manual_seed(0))
    tables = []
    for states in (old, new):
        logits = head(states) / 0.5
        logits[:, policy.banned] = -1e9
        tables.append(logits.double().softmax(-1))
    kept = [token for token in range(tables[0].shape[1]) if token not in policy.banned]
    expected = (tables[0] * (tables[0].log() - tables[1].log()))[:, kept].sum(-1).float()
    torch.testing.assert_close(token_kl(policy, head, old, new, 0.5), expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr("vlm.trpo.LOGITS_AT_ONCE", 2 * len(tables[0][0]))
    torch.testing.assert_close(token_kl(policy, head, old, new, 0.5), expected, rtol=1e-4, atol=1e-5)


def test_parts_of_a_step_give_the_same(config: TRPOConfig, tmp_path: Path) -> None:
    lines = [
        train(replace(config, out=tmp_path / str(size), micro_batch_size=size), reward=letters).metrics[0]
        for size in (None, 3)
    ]
    for name in ("step", "kl_step", "surrogate", "grad_norm"):
        assert lines[1][name] == pytest.approx(lines[0][name], rel=1e-2)


def test_resumed_equals_never_killed(config: TRPOConfig, tmp_path: Path) -> None:
    config = replace(config, epochs=3, kl_target=1.0, kl_horizon=20, ema_decay=0.5, save_every=1)
    whole = train(config, reward=letters)
    again = replace(config, out=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        train(again, reward=killed(2))
    resumed = train(replace(again, resume=True), reward=letters)
    assert_same_run(resumed, whole)
    assert len(whole.metrics) == 3


def test_where_nothing_is_better_no_step_is_taken(config: TRPOConfig, capsys: pytest.CaptureFixture[str]) -> None:
    def nothing(rows: Sequence[Row]) -> list[Judgement]:
        return [Judgement(())] * len(rows)

    metrics = train(replace(config, beta=0.0, epochs=3, halvings=2), reward=nothing).metrics
    assert [(line["step"], line["kl_step"], line["halvings"], line["updates"]) for line in metrics] == [
        (0, 0, 2, 0)
    ] * 3
    assert "no step" in metrics[-1]["problems"] and "no step" not in metrics[1]["problems"]
    assert "no part of a step kept to --max-kl 0.05" in capsys.readouterr().err
    weights = load_file(config.out / "adapter_model.safetensors")
    assert all((value == 0).all() for name, value in weights.items() if "lora_B" in name)
    assert "no step" not in problems([*metrics, metrics[-1] | {"updates": 1}], config)


def test_a_step_that_goes_too_far_is_taken_back(config: TRPOConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is ten times too long is halved until it fits, and taken back where it may not be."""
    from vlm import trpo

    longer = trpo.natural_step
    monkeypatch.setattr(trpo, "natural_step", lambda *args, **how: 10 * longer(*args, **how))
    (line,) = train(replace(config, out=config.out / "halved"), reward=letters).metrics
    assert line["halvings"] >= 2 and 0 < line["kl_step"] <= 0.05
    (line,) = train(replace(config, out=config.out / "back", halvings=1), reward=letters).metrics
    assert (line["step"], line["updates"], line["halvings"]) == (0, 0, 1)
    weights = load_file(config.out / "back" / "adapter_model.safetensors")
    assert all((value == 0).all() for name, value in weights.items() if "lora_B" in name)


def test_a_budget_stops_before_the_kl_exceeds_it(config: TRPOConfig) -> None:
    result = train(replace(config, max_kl=0.5, kl_budget=0.5, epochs=8), reward=letters)
    assert "over the budget of 0.5" in result.stopped and len(result.metrics) < 8


def test_bad_input_is_told_in_one_line(config: TRPOConfig) -> None:
    outside: list[tuple[dict[str, Any], str]] = [
        ({"max_kl": 0.0}, "--max-kl got 0.0, allowed is above 0"),
        ({"cg_iterations": 0}, "--cg-iterations got 0, allowed is 1 or more"),
        ({"damping": -0.1}, "--damping got -0.1, allowed is 0 or more"),
        ({"halvings": -1}, "--halvings got -1, allowed is 0 or more"),
        ({"gae_lambda": 1.5}, "--gae-lambda got 1.5, allowed is 0 up to 1"),
        ({"clip_range": 0.1}, "--clip-range got 0.1, but trpo has no use for it: leave it out"),
        ({"learning_rate": 1e-3}, "--learning-rate got 0.001, but trpo has no use for it: leave it out"),
        ({"inner_epochs": 1}, "--inner-epochs got 1, but trpo has no use for it"),
    ]  # fmt: skip
    for change, words in outside:
        with pytest.raises(UserError, match=words):
            validate(replace(config, **change))
    with pytest.raises(UserError, match="2 of 2 prompts have no room for --max-new-tokens 5000"):
        train(replace(config, max_new_tokens=5000), reward=letters)

    def infinite(rows: Sequence[Row]) -> list[Judgement]:
        return [Judgement((), float("inf"))] * len(rows)

    assert not config.out.exists()
    with pytest.raises(UserError, match=r"the reward \(0 of 8 are NaN, 8 infinite\) is not a finite number in epoch 0"):
        train(config, reward=infinite)


def test_the_command_line_has_the_papers_defaults(tmp_path: Path) -> None:
    given = ["--model", "tiny-llava", "--prompts", "p.jsonl", "--reward", "a:b", "--out", str(tmp_path)]
    config = parse(TRPOConfig, given, "mmrlhf vlm trpo")
    assert (config.max_kl, config.cg_iterations, config.damping, config.discount) == (0.01, 10, 0.1, 1)
    validate(config)
