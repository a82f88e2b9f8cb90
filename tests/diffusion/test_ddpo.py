"""The trainer learns, resumes as if never killed, and says why where it cannot learn."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image

from diffusion.ddpo import improve, step_loss, train
from diffusion.ddpo_config import DDPOConfig, validate
from diffusion.generate import generate_images
from diffusion.policy import DiffusionPolicy
from diffusion.rollouts import sample_epoch, single_steps
from diffusion.training import Run, begin, load_policy
from mmrlhf.config import parse
from mmrlhf.errors import UserError
from mmrlhf.seeding import seeded
from mmrlhf.types import Rollout
from tests.diffusion.helpers import Brightness, timeless, trained_weights

CONFIGS = Path(__file__).parents[2] / "configs" / "ddpo"


@pytest.fixture
def config(model: Path, tmp_path: Path) -> DDPOConfig:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\nred\n")
    return DDPOConfig(
        model=str(model), prompts=prompts, reward="brightness", out=tmp_path / "run", epochs=3, samples_per_epoch=6,
        sample_batch_size=4, train_batch_size=2, num_steps=3, guidance_scale=1.0, lora_rank=2, learning_rate=1e-2,
        clip_range=1e-2, kl_samples=2, images_every=0, device="cpu",
    )  # fmt: skip


@pytest.mark.parametrize("baseline", ["prompt", pytest.param("value", marks=pytest.mark.slow)])
def test_it_learns_to_draw_brighter_pictures(config: DDPOConfig, baseline: Literal["prompt", "value"]) -> None:
    config = replace(
        config, epochs=10, samples_per_epoch=32, sample_batch_size=32, train_batch_size=16, num_steps=5, lora_rank=4,
        inner_epochs=2, baseline=baseline, value_learning_rate=3e-3,
    )  # fmt: skip
    metrics = train(config, reward=Brightness()).metrics
    policy = DiffusionPolicy.load(config.model, lora=config.out, num_steps=5, guidance_scale=1.0, device="cpu")
    prompts = ["a cat", "a dog"] * 16
    after = Brightness()(generate_images(policy, prompts, seed=9, batch_size=32), prompts)
    with policy.reference():
        before = Brightness()(generate_images(policy, prompts, seed=9, batch_size=32), prompts)
    assert (after - before).mean() > 0.75 * before.std()  # the same noise; measured: about 1.5
    assert sum(line["reward_mean"] for line in metrics[-3:]) > sum(line["reward_mean"] for line in metrics[:3])
    assert metrics[0]["kl"] == 0 < metrics[-1]["kl"]
    if baseline == "value":
        assert metrics[0]["value_explained"] == 0 < 0.1 < sum(line["value_explained"] for line in metrics[-4:]) / 4


def test_what_a_run_leaves(config: DDPOConfig, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[dict[str, Any]] = []
    result = train(replace(config, images_every=2), reward=Brightness(), on_epoch=seen.append)
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.metrics == seen and [line["epoch"] for line in lines] == [0, 1, 2]
    wanted = {
        "epoch",
        "samples",
        "seconds",
        "reward_mean",
        "reward_std",
        "kl",
        "clip_fraction",
        "ratio_mean",
        "grad_norm",
        "loss",
        "advantage_clipped",
        "update_size",
    }
    assert wanted <= lines[0].keys() and not any(name.startswith("value") for name in lines[0])
    assert lines[0]["samples"] == 6 and lines[0]["updates"] == 3
    assert sorted(path.name for path in (config.out / "samples").iterdir()) == [f"epoch-000{i}.png" for i in (0, 2, 3)]
    with Image.open(config.out / "samples" / "epoch-0000.png") as sheet:
        assert sheet.size == (8 * 65 - 1, 2 * 65 - 1)
    assert (config.out / "pytorch_lora_weights.safetensors").is_file()
    assert f"the weights to load are in {config.out}" in capsys.readouterr().out.splitlines()[-1]
    assert not list(config.out.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("rank", "epochs", "save_every", "baseline"), [(0, 2, 1, "prompt"), (2, 4, 2, "prompt"), (2, 4, 2, "value")]
)
def test_killed_and_resumed_is_never_killed(
    config: DDPOConfig, tmp_path: Path, rank: int, epochs: int, save_every: int, baseline: Literal["prompt", "value"]
) -> None:
    config = replace(
        config, lora_rank=rank, learning_rate=1e-2 if rank else 1e-4, epochs=epochs, save_every=save_every,
        baseline=baseline,
    )  # fmt: skip
    whole = train(config, reward=Brightness())

    def kill(score: torch.Tensor, calls: int) -> torch.Tensor:
        if (
            calls == 2 * epochs
        ):  # two batches an epoch: in the middle of the last; with save_every 2, an epoch is lost too
            raise KeyboardInterrupt
        return score

    again = replace(config, out=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        train(again, reward=Brightness(kill))
    assert len((again.out / "metrics.jsonl").read_text().splitlines()) == epochs - 1
    resumed = train(replace(again, resume=True), reward=Brightness())
    assert timeless(resumed.metrics) == timeless(whole.metrics)
    assert len((again.out / "metrics.jsonl").read_text().splitlines()) == epochs
    ended = trained_weights(again.out)
    assert all(weight.equal(ended[name]) for name, weight in trained_weights(config.out).items())
    states = [torch.load(out / "checkpoint.pt", weights_only=True)["value"] for out in (config.out, again.out)]
    torch.testing.assert_close(states[0], states[1], atol=0, rtol=0)
    assert bool(states[0]) == (baseline == "value")


def step_numbers(policy: DiffusionPolicy, batch: Rollout) -> list[int]:
    """Which of the sampler's steps they are."""
    return [policy.sampler.timesteps.tolist().index(time) for time in batch.timesteps.flatten().tolist()]


def test_advantages_over_values_are_those_of_each_step(config: DDPOConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step is trained on with its own advantage, cut; here they are the numbers of the steps, and one far out."""
    asked: list[tuple[float, float]] = []

    def watched(policy: Any, batch: Any, own: torch.Tensor, *rest: Any) -> Any:
        asked.extend(zip(step_numbers(policy, batch), own.flatten().tolist(), strict=True))
        return step_loss(policy, batch, own, *rest)

    monkeypatch.setattr("diffusion.ddpo.step_loss", watched)
    run = begin("ddpo", config, ["a cat"])
    rollout, advantages = sample_epoch(run.policy, ["a cat"] * 6, 6, seeded(0)), torch.arange(3.0).repeat(6, 1)
    advantages[0, 0], advantages[1, 2] = 0.5, -9.0
    figures = improve(run, rollout, torch.arange(6), advantages, config, seeded(1), 0)
    assert sorted(asked) == sorted([(0, 0.0)] * 5 + [(0, 0.5)] + [(1, 1.0)] * 6 + [(2, 2.0)] * 5 + [(2, -5.0)])
    assert figures["advantage_clipped"] == pytest.approx(1 / 18)


def test_the_size_of_updates_grows_with_the_learning_rate(config: DDPOConfig, tmp_path: Path) -> None:
    sizes = [
        train(replace(config, epochs=1, learning_rate=rate, out=tmp_path / str(rate)), reward=Brightness()).metrics[0]
        for rate in (1e-3, 2e-3)
    ]
    assert 1e-4 < sizes[0]["update_size"] == pytest.approx(sizes[1]["update_size"] / 2, rel=0.2)


def test_resuming_a_finished_run_changes_nothing_and_more_epochs_go_on(config: DDPOConfig) -> None:
    first = train(replace(config, epochs=2), reward=Brightness())
    before = trained_weights(config.out)
    assert train(replace(config, epochs=2, resume=True), reward=Brightness()).metrics == first.metrics
    after = trained_weights(config.out)
    assert all(weight.equal(before[name]) for name, weight in after.items())
    assert train(replace(config, resume=True), reward=Brightness()).metrics[:2] == first.metrics


def test_the_same_seed_is_the_same_run_and_another_is_not(config: DDPOConfig, tmp_path: Path) -> None:
    runs = [
        train(replace(config, epochs=1, seed=seed, out=tmp_path / str(i)), reward=Brightness()).metrics
        for i, seed in enumerate((0, 0, 1))
    ]
    assert timeless(runs[0]) == timeless(runs[1]) != timeless(runs[2])


def test_a_folder_of_another_run_is_refused(config: DDPOConfig) -> None:
    train(replace(config, epochs=1), reward=Brightness())
    with pytest.raises(UserError, match="already holds files: .*--resume"):
        train(config, reward=Brightness())
    with pytest.raises(UserError, match="other settings .learning_rate"):
        train(replace(config, learning_rate=0.5, resume=True), reward=Brightness())


def test_a_run_goes_on_from_another_working_directory(config: DDPOConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(config.out.parent)
    train(replace(config, epochs=1, prompts=Path("prompts.txt"), out=Path("run")), reward=Brightness())
    monkeypatch.chdir("/")
    moved = config.out.rename(config.out.with_name("moved"))
    assert len(train(replace(config, epochs=2, out=moved, resume=True), reward=Brightness()).metrics) == 2


@pytest.mark.parametrize("name", ["tiny-sd", "sd15", "sdxl", "sd3", "flux"])
def test_the_shipped_configs_are_valid(name: str) -> None:
    given = ["--prompts", "prompts.txt", "--reward", "brightness", "--out", "run"]
    validate(parse(DDPOConfig, ["--config", str(CONFIGS / f"{name}.yaml"), *given], "mmrlhf diffusion ddpo"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_stops_with_the_last_good_checkpoint(config: DDPOConfig, bad: float) -> None:
    def spoil(score: torch.Tensor, calls: int) -> torch.Tensor:
        return score * bad if calls > 4 else score

    with pytest.raises(UserError, match=r"the reward .* not a finite number in epoch 2: check what .*checkpoint.pt"):
        train(config, reward=Brightness(spoil))
    assert len(torch.load(config.out / "checkpoint.pt", weights_only=True)["metrics"]) == 2
    fine = train(replace(config, resume=True), reward=Brightness())
    assert len(fine.metrics) == 3


def test_a_gradient_that_is_no_number_stops_before_the_weights_change(
    config: DDPOConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        loss, figures = step_loss(*arguments)
        return loss * float("nan"), figures

    monkeypatch.setattr("diffusion.ddpo.step_loss", broken)
    with pytest.raises(UserError, match="gradient .* epoch 0: lower --learning-rate .*no checkpoint was written yet"):
        train(config, reward=Brightness())


def test_one_abstention_is_left_out(config: DDPOConfig) -> None:
    def abstain(score: torch.Tensor, calls: int) -> torch.Tensor:
        score[0] = float("nan")
        return score

    line = train(replace(config, epochs=1), reward=Brightness(abstain)).metrics[0]
    assert line["abstained"] == 2 and line["reward_mean"] == pytest.approx(0.5, abs=0.1) and line["grad_norm"] > 0


def test_a_flat_reward_is_diagnosed_once(config: DDPOConfig, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(replace(config, epochs=2), reward=Brightness(lambda score, _: torch.full_like(score, 0.1)))
    assert [line["problems"] for line in result.metrics] == [["flat reward"]] * 2
    assert (
        capsys.readouterr().err.count("not learning (flat reward) in epoch 0: all samples got nearly the same reward")
        == 1
    )


@pytest.mark.parametrize(
    ("change", "problems", "advice"),
    [
        ({"learning_rate": 1e-7, "clip_range": 0.1}, ["no step", "small updates"], "raise --learning-rate"),
        (
            {"learning_rate": 0.05, "clip_range": 1e-9, "inner_epochs": 4, "num_steps": 2},
            ["always clipped"],
            "lower --learning-rate",
        ),
    ],
)
def test_a_learning_rate_that_does_not_fit_is_diagnosed(
    config: DDPOConfig, capsys: pytest.CaptureFixture[str], change: dict[str, Any], problems: list[str], advice: str
) -> None:
    result = train(replace(config, **change), reward=Brightness())
    assert result.metrics[-1]["problems"] == problems
    assert advice in capsys.readouterr().err


def test_the_kl_budget_stops_and_takes_the_last_update_back(config: DDPOConfig) -> None:
    free = train(replace(config, epochs=2), reward=Brightness())
    budget = free.metrics[1]["kl"] / 2
    config = replace(config, out=config.out.with_name("limited"), kl_budget=budget)
    result = train(config, reward=Brightness())
    assert len(result.metrics) == 1 and "over the budget" in result.stopped
    start = {name: weight for name, weight in load_policy(config).state_dict().items()}
    assert all(weight.equal(start[name]) for name, weight in trained_weights(config.out).items())


def test_a_run_that_its_budget_stopped_stays_stopped(config: DDPOConfig) -> None:
    """Weights and optimizer are those before the update that was too much; only a higher budget, or none, goes on."""
    budget = 1e-6
    train(replace(config, epochs=1), reward=Brightness())
    expected = torch.load(config.out / "checkpoint.pt", weights_only=True)
    config = replace(config, resume=True)
    result = train(replace(config, kl_budget=budget), reward=Brightness())
    assert len(result.metrics) == 2 and "over the budget" in result.stopped
    stopped = torch.load(config.out / "checkpoint.pt", weights_only=True)
    torch.testing.assert_close(stopped["policy"], expected["policy"], rtol=0, atol=0)
    torch.testing.assert_close(stopped["optimizer"]["state"], expected["optimizer"]["state"], rtol=0, atol=0)

    for same in (budget, budget / 2):
        reward = Brightness()
        assert train(replace(config, kl_budget=same, epochs=9), reward=reward) == result
        assert reward.calls == 0
    higher = train(replace(config, kl_budget=1e6), reward=Brightness())
    assert len(higher.metrics) == 3 and not higher.stopped
    assert train(replace(config, kl_budget=budget, epochs=4), reward=Brightness()).stopped
    assert len(train(replace(config, epochs=5), reward=Brightness()).metrics) == 5


def test_the_kl_penalty_holds_the_policy_back(config: DDPOConfig, tmp_path: Path) -> None:
    config = replace(config, inner_epochs=2, epochs=2)
    kl = [
        train(replace(config, kl_weight=weight, out=tmp_path / str(weight)), reward=Brightness()).metrics[-1]["kl"]
        for weight in (0.0, 10.0)
    ]
    assert kl[1] < 0.5 * kl[0]


def plain_descent(config: DDPOConfig) -> Run:
    """A run whose optimizer subtracts the gradient."""
    run = begin("ddpo", config, ["a cat"])
    run.optimizer = torch.optim.SGD(run.policy.parameters(), lr=1.0)
    return run


def linear(rollout: Rollout) -> torch.Tensor:
    """Advantages from -1 to 2, the same at all steps of a sample."""
    return torch.linspace(-1, 2, len(rollout.prompts)).unsqueeze(1).expand_as(rollout.log_probs)


def test_accumulated_gradients_are_those_of_one_batch(config: DDPOConfig) -> None:
    """Batches of 2, three an update, against one batch of 6: the same samples and steps, so the same weights after it."""
    after = []
    for size, accumulation in ((2, 3), (6, 1), (4, 2)):
        own = replace(config, train_batch_size=size, gradient_accumulation=accumulation)
        run = plain_descent(replace(own, out=own.out / str(size)))
        rollout = sample_epoch(run.policy, ["a cat"] * 6, 6, seeded(0))
        figures = improve(run, rollout, torch.arange(6), linear(rollout), own, seeded(1), 0)
        assert figures["updates"] == 1
        after.append(run.policy.state_dict())
    for other in after[1:]:
        for name, weight in after[0].items():
            torch.testing.assert_close(weight, other[name], atol=1e-5, rtol=1e-3)


def test_micro_batches_change_rounding_only(config: DDPOConfig) -> None:
    """However many steps go through the network at once, of whatever batches: the weights after an update are the same."""
    after = []
    for size in (None, 1, 4, 100):
        own = replace(config, train_batch_size=3, gradient_accumulation=2, micro_batch_size=size)
        run = plain_descent(replace(own, out=own.out / str(size)))
        rollout = sample_epoch(run.policy, ["a cat"] * 6, 6, seeded(0))
        figures = improve(run, rollout, torch.arange(6), linear(rollout), own, seeded(1), 0)
        assert figures["updates"] == 1 and figures["ratio_mean"] == pytest.approx(1, abs=1e-4)
        after.append(run.policy.state_dict())
    for other in after[1:]:
        for name, weight in after[0].items():
            torch.testing.assert_close(weight, other[name], atol=1e-5, rtol=1e-3)


def test_what_does_not_fit_into_memory_goes_in_parts(
    config: DDPOConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A GPU that holds two rows at once, in the way back too: the same weights, told in a line each time that it is halved."""
    config, tried = replace(config, train_batch_size=6), []
    plain, run = plain_descent(config), plain_descent(replace(config, out=config.out / "small"))
    rollout = sample_epoch(run.policy, ["a cat"] * 6, 6, seeded(0))
    improve(plain, rollout, torch.arange(6), linear(rollout), config, seeded(1), 0)

    def small(policy: Any, batch: Any, *rest: Any) -> Any:
        tried.append(len(batch.prompts))
        loss, figures = step_loss(policy, batch, *rest)
        return TooMuch.apply(loss) if len(batch.prompts) > 2 else loss, figures

    monkeypatch.setattr("diffusion.ddpo.step_loss", small)
    improve(run, rollout, torch.arange(6), linear(rollout), config, seeded(1), 0)
    assert tried == [6, 3] + [1] * 18
    told = capsys.readouterr().err
    assert "6 samples at once do not fit into memory: going on with 3" in told and "going on with 1" in told
    for name, weight in plain.policy.state_dict().items():
        torch.testing.assert_close(weight, run.policy.state_dict()[name], atol=1e-5, rtol=1e-3)


class TooMuch(torch.autograd.Function):
    """Memory is out in the way back."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("out")


def test_where_one_row_does_not_fit_the_run_ends_in_a_line(config: DDPOConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("out")

    monkeypatch.setattr("diffusion.ddpo.step_loss", never)
    with pytest.raises(UserError, match="does not suffice for one sample: add --gradient-checkpointing"):
        train(replace(config, train_batch_size=1), reward=Brightness())


def test_the_first_update_is_the_policy_gradient(config: DDPOConfig) -> None:
    """At the weights that drew the samples: −mean over samples and steps of A ∇ log π, by plain autograd on all steps."""
    config = replace(config, train_batch_size=6, max_grad_norm=1e9)
    run = plain_descent(config)
    policy = run.policy
    rollout = sample_epoch(policy, ["a cat"] * 6, 6, seeded(0))
    advantages = linear(rollout)
    loss = -(advantages * policy.log_prob(rollout)).mean()
    expected = torch.autograd.grad(loss, policy.parameters())
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    improve(run, rollout, torch.arange(6), advantages, config, seeded(1), 0)
    for (name, weight), gradient in zip(policy.state_dict().items(), expected, strict=True):
        torch.testing.assert_close(before[name] - weight, gradient, atol=1e-5, rtol=1e-3)


def test_the_score_function_makes_one_update_an_epoch(config: DDPOConfig) -> None:
    """Its gradient is that of the ratios at the weights that drew the samples."""
    run = plain_descent(replace(config, max_grad_norm=1e9))
    rollout = sample_epoch(run.policy, ["a cat"] * 6, 6, seeded(0))
    advantages = linear(rollout)
    loss = -(advantages * run.policy.log_prob(rollout)).mean()
    expected = torch.autograd.grad(loss, run.policy.parameters())
    before = {name: weight.clone() for name, weight in run.policy.state_dict().items()}
    own = replace(config, algorithm="score-function", max_grad_norm=1e9)
    assert improve(run, rollout, torch.arange(6), advantages, own, seeded(1), 0)["updates"] == 1
    for (name, weight), gradient in zip(run.policy.state_dict().items(), expected, strict=True):
        torch.testing.assert_close(before[name] - weight, gradient, atol=1e-5, rtol=1e-3)
    with pytest.raises(UserError, match="--inner-epochs got 2, allowed is 1 with --algorithm score-function"):
        validate(replace(own, inner_epochs=2))


def test_a_share_of_the_steps_is_trained_on(config: DDPOConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.Tensor] = []

    def watched(policy: Any, batch: Any, *rest: Any) -> Any:
        asked.append(torch.tensor(step_numbers(policy, batch)))
        return step_loss(policy, batch, *rest)

    monkeypatch.setattr("diffusion.ddpo.step_loss", watched)
    train(replace(config, epochs=1, timestep_fraction=0.67), reward=Brightness())
    assert len(torch.cat(asked)) == 6 * 2
    asked.clear()
    train(replace(config, epochs=1, out=config.out.with_name("all")), reward=Brightness())
    assert torch.cat(asked).bincount().tolist() == [6, 6, 6]  # each step of each sample once …
    assert any(len(set(column.tolist())) > 1 for column in asked)  # … in an order of its own


def test_step_loss_of_a_selected_sample_at_unchanged_weights(config: DDPOConfig) -> None:
    policy = load_policy(config)
    rollout = sample_epoch(policy, ["a cat", "a dog"], 2, seeded(0))
    part = single_steps(rollout, torch.tensor([1]), torch.tensor([1]))
    loss, figures = step_loss(policy, part, torch.tensor([[2.0]]), config)
    assert loss.item() == pytest.approx(-2, abs=1e-3) and figures["ratio_mean"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "--epochs got 0, allowed is 1 or more"),
        ({"train_batch_size": -1}, "--train-batch-size got -1, allowed is 1 or more"),
        ({"lora_rank": -1}, "--lora-rank got -1, allowed is 0 or more"),
        ({"learning_rate": 0.0}, "--learning-rate got 0.0, allowed is above 0"),
        ({"learning_rate": float("nan")}, "--learning-rate got nan"),
        ({"eta": 0.0}, "--eta got 0.0, allowed is above 0"),
        ({"eta": 1.5}, "--eta got 1.5, allowed is 0 up to 1"),
        ({"timestep_fraction": 2.0}, "--timestep-fraction got 2.0"),
        ({"value_learning_rate": 0.0}, "--value-learning-rate got 0.0, allowed is above 0"),
        ({"value_epochs": 0}, "--value-epochs got 0, allowed is 1 or more"),
        ({"value_clip": -0.1}, "--value-clip got -0.1, allowed is 0 or more"),
        ({"value_lambda": 1.5}, "--value-lambda got 1.5, allowed is 0 up to 1"),
        ({"kl_budget": -1.0}, "--kl-budget got -1.0, allowed is above 0"),
        ({"lora_alpha": float("nan")}, "--lora-alpha got nan, allowed is above 0: leave it out"),
        ({"lora_alpha": float("inf")}, "--lora-alpha got inf"),
        ({"guidance_scale": float("inf")}, "--guidance-scale got inf, allowed is 0 or more"),
        ({"seed": -1}, "--seed got -1, allowed is 0 to "),
        ({"seed": 2**64}, "--seed got 18446744073709551616, allowed is 0 to"),
        ({"num_steps": 5000}, "num_steps got 5000, allowed is 1 to 999 for this model of 1000 training steps"),
        (
            {"prompts": Path("missing.txt")},
            "cannot read missing.txt .No such file.*give a text file with a prompt a line",
        ),
        ({"model": "missing"}, "unknown model 'missing'"),
    ],
    ids=str,
)
def test_bad_values_are_refused_before_anything_is_written(
    config: DDPOConfig, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(replace(config, **change), reward=Brightness())
    assert not config.out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["prompt", "value"])
def test_two_processes_give_the_weights_of_one(
    config: DDPOConfig, tmp_path: Path, baseline: Literal["prompt", "value"]
) -> None:
    """Under `accelerate launch`, with batches that two do not divide and a last one of a single sample."""
    config = replace(
        config, epochs=2, samples_per_epoch=7, sample_batch_size=3, train_batch_size=3, kl_samples=3, baseline=baseline
    )
    options = ["--model", config.model, "--prompts", config.prompts, "--reward", "brightness", "--epochs", 2,
               "--samples-per-epoch", 7, "--sample-batch-size", 3, "--train-batch-size", 3, "--num-steps", 3,
               "--guidance-scale", 1, "--lora-rank", 2, "--learning-rate", 1e-2, "--clip-range", 1e-2, "--kl-samples", 3,
               "--images-every", 2, "--device", "cpu", "--baseline", baseline, "--out", tmp_path / "two"]  # fmt: skip
    script = tmp_path / "script.py"
    script.write_text("from mmrlhf.cli import main\nmain()\n")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", script]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path.cwd())}
    command = list(map(str, [*launch, "diffusion", "ddpo", *options]))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("the weights to load are in") == 1
    one = train(config)
    two = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    for mine, theirs in zip(timeless(one.metrics), timeless(two), strict=True):
        assert mine.pop("problems") == theirs.pop("problems")
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    for name, weight in trained_weights(config.out).items():
        torch.testing.assert_close(weight, trained_weights(tmp_path / "two")[name], atol=1e-4, rtol=1e-2, msg=name)
    assert (tmp_path / "two" / "samples" / "epoch-0002.png").is_file()
