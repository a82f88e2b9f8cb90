"""The trainer learns, resumes as if never killed, and says why where it cannot learn."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.flow_sde import FlowCoefficients
from diffusion.generate import generate_images
from diffusion.grpo import (
    ALGORITHMS,
    group_figures,
    grpo_loss,
    improve,
    step_kl,
    step_loss,
    train,
    window,
)
from diffusion.grpo_config import GRPOConfig, validate
from diffusion.policy import DiffusionPolicy
from diffusion.rollouts import sample_epoch, single_steps
from diffusion.training import begin, load_policy
from mmrlhf.config import parse
from mmrlhf.errors import UserError
from mmrlhf.rl import advantages_of_rated, group_advantages, leave_one_out_advantages
from mmrlhf.seeding import seeded
from mmrlhf.types import Rollout
from tests.diffusion.helpers import Brightness, timeless, trained_weights
from tests.diffusion.test_policy import disturb
from tests.processes import finish, launch
from tests.small_flow_models import small_pipeline

CONFIGS = Path(__file__).parents[2] / "configs" / "grpo"
NAN = float("nan")
Change = Callable[[torch.Tensor, int], torch.Tensor]


@pytest.fixture
def config(model: Path, tmp_path: Path) -> GRPOConfig:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\nred\n")
    return GRPOConfig(
        model=str(model), prompts=prompts, reward="brightness", out=tmp_path / "run", epochs=3, prompts_per_epoch=2,
        samples_per_prompt=4, sample_batch_size=8, train_batch_size=4, num_steps=3, eval_steps=4, guidance_scale=1.0,
        lora_rank=2, learning_rate=1e-2, clip_range=1e-2, kl_samples=2, images_every=0, device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "sd3"
    small_pipeline("StableDiffusion3Pipeline", folder)
    return str(folder)


def test_what_an_epoch_measures(config: GRPOConfig) -> None:
    seen: list[dict[str, Any]] = []
    result = train(config, reward=Brightness(), on_epoch=seen.append)
    assert result.metrics == seen and [line["epoch"] for line in seen] == [0, 1, 2]
    wanted = {
        "epoch", "samples", "seconds", "reward_mean", "reward_std", "kl", "clip_fraction", "ratio_mean", "ratio_min",
        "ratio_max", "grad_norm", "loss", "group_std_mean", "zero_spread_groups", "rated_per_prompt", "step_kl",
        "advantage_clipped", "update_size", "updates",
    }  # fmt: skip
    assert wanted <= seen[0].keys()
    assert (seen[0]["samples"], seen[0]["updates"], seen[0]["rated_per_prompt"]) == (8, 2, 4)
    assert seen[0]["kl"] == 0 < seen[-1]["kl"] and 0 < seen[0]["group_std_mean"] <= seen[0]["reward_std"]
    assert (config.out / "pytorch_lora_weights.safetensors").is_file()


@pytest.mark.parametrize("flows", [False, True])
def test_killed_and_resumed_is_never_killed(config: GRPOConfig, flow: str, tmp_path: Path, flows: bool) -> None:
    """With a window, which must be where it would have been; save_every 2 loses an epoch too."""
    config = replace(config, num_steps=4, window=2, epochs=4, save_every=2, model=flow if flows else config.model)
    whole = train(config, reward=Brightness())

    def kill(score: torch.Tensor, calls: int) -> torch.Tensor:
        if calls == 4:
            raise KeyboardInterrupt
        return score

    again = replace(config, out=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        train(again, reward=Brightness(kill))
    resumed = train(replace(again, resume=True), reward=Brightness())
    assert timeless(resumed.metrics) == timeless(whole.metrics) and len(whole.metrics) == 4
    ended = trained_weights(again.out)
    assert all(weight.equal(ended[name]) for name, weight in trained_weights(config.out).items())


def test_pictures_have_more_steps_than_training_and_do_not_change_it(
    config: GRPOConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, steps = replace(config, epochs=2), []
    plain = train(config, reward=Brightness())

    def watched(policy: Any, *_: Any, **__: Any) -> torch.Tensor:
        steps.append((len(policy.sampler.timesteps), policy.sampler.eta))
        return torch.zeros(16, 3, 64, 64)

    monkeypatch.setattr("diffusion.training.generate_images", watched)
    drawn = train(replace(config, out=config.out.with_name("drawn"), images_every=1), reward=Brightness())
    assert steps == [(4, 0.0)] * 3 and timeless(drawn.metrics) == timeless(plain.metrics)


@pytest.mark.parametrize(
    ("size", "every", "possible", "starts"),
    [(2, 1, 4, [0, 1, 2, 0, 1]), (2, 2, 4, [0, 0, 1, 1, 2]), (4, 1, 4, [0] * 5), (1, 1, 3, [0, 1, 2, 0, 1])],
)
def test_the_window_slides_and_comes_back(
    config: GRPOConfig, size: int, every: int, possible: int, starts: list[int]
) -> None:
    config = replace(config, window=size, window_epochs=every)
    assert [window(config, possible, epoch) for epoch in range(5)] == [range(at, at + size) for at in starts]
    assert window(replace(config, window=0), possible, 3) is None


def test_noise_and_gradients_only_in_the_window(config: GRPOConfig, flow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts, asked = [], []

    def watched(policy: Any, batch: Any, *rest: Any) -> Any:
        rollouts.append(batch)
        asked.extend(batch.timesteps.flatten().tolist())
        return step_loss(policy, batch, *rest)

    monkeypatch.setattr("diffusion.grpo.step_loss", watched)
    config = replace(config, model=flow, num_steps=4, window=2, epochs=2, train_batch_size=8)
    metrics = train(config, reward=Brightness()).metrics
    assert sorted(asked) == [0] * 8 + [1] * 16 + [2] * 8 and rollouts[0].log_probs.shape == (8, 1)
    assert metrics[0]["kl"] == 0 < metrics[1]["kl"]


def test_advantages_compare_within_a_group_and_leave_abstentions_out() -> None:
    rewards = torch.tensor([[1.0, NAN, 2.0, 6.0], [5.0, 5.0, 5.0, 5.0], [NAN, NAN, 3.0, NAN], [0.0, 1.0, 2.0, 3.0]])
    rated = torch.tensor([1.0, 2.0, 6.0])
    grpo = advantages_of_rated(rewards, ALGORITHMS["grpo"])
    expected = (rated - 3) / ((14 / 3) ** 0.5 + 1e-4)
    torch.testing.assert_close(grpo[0, [0, 2, 3]], expected)
    assert grpo[0, 1] == 0 and (grpo[1] == 0).all() and (grpo[2] == 0).all()
    torch.testing.assert_close(grpo[3:], group_advantages(rewards[3:]))
    rloo = advantages_of_rated(rewards, ALGORITHMS["rloo"])
    torch.testing.assert_close(rloo[0], torch.tensor([1.0 - 4, 0, 2 - 3.5, 6 - 1.5]))
    torch.testing.assert_close(rloo[3:], leave_one_out_advantages(rewards[3:]))
    assert (advantages_of_rated(torch.full((1, 7), 2000.1), ALGORITHMS["grpo"]).abs() < 1e-6).all()


def test_figures_of_groups() -> None:
    rewards = torch.tensor([[1.0, NAN, 3.0], [5.0, 5.0, 5.0], [NAN, NAN, NAN], [0.0, 0.0, 3.0]])
    figures = group_figures(rewards)
    assert figures["group_std_mean"] == pytest.approx((1 + 0 + 0 + 2**0.5) / 4)
    assert figures["zero_spread_groups"] == 0.5 and figures["rated_per_prompt"] == 2


def test_the_loss_by_hand() -> None:
    old, new = torch.tensor([[-1.0], [-1.0]]), torch.tensor([[-1.0 + 0.3], [-1.0 - 0.1]])
    loss, figures = grpo_loss(new, old, torch.tensor([[2.0], [-1.0]]), torch.tensor([[3.0], [1.0]]), 0.2, 0.5)
    gains = [1.2 * 2, -float(torch.tensor(-0.1).exp())]  # the first is cut at 1 + 0.2
    assert loss.item() == pytest.approx(-sum(gains) / 2 + 0.5 * 2) == figures["loss"]
    assert figures["step_kl"] == 2 and figures["clip_fraction"] == 0.5
    without, figures = grpo_loss(new, old, torch.tensor([[2.0], [-1.0]]), None, 0.2, 0.5)
    assert without.item() == pytest.approx(-sum(gains) / 2) and "step_kl" not in figures


def at_step(rollout: Rollout, step: int) -> Rollout:
    """One step of all samples."""
    count = len(rollout.prompts)
    return single_steps(rollout, torch.arange(count), torch.full((count,), step))


def test_the_step_kl_is_that_of_the_velocities(config: GRPOConfig, flow: str) -> None:
    """Flow-GRPO's closed form ½dt²(s(1−σ)/(2σ) + 1/s)²·mean (v − v_ref)², from the network's own outputs."""
    config = replace(config, model=flow, num_steps=4)
    policy = load_policy(config)
    disturb(policy)
    rollout, step = sample_epoch(policy, ["a cat", "red"], config.sample_batch_size, seeded(0)), 1
    times, latents = rollout.timesteps[:, step], rollout.latents[:, step]
    at = policy.sampler.coefficients(times)
    assert isinstance(at, FlowCoefficients)
    with torch.no_grad():
        context = policy.context(rollout.prompts)
        velocity = policy.predict(latents, policy.sampler.times(times), context)
        with policy.reference():
            start = policy.predict(latents, policy.sampler.times(times), context)
    distance = (velocity - start).square().mean(dim=(1, 2, 3))
    slope = at.diffusion * (1 - at.level) / (2 * at.level) + 1 / at.diffusion
    expected = 0.5 * at.change**2 * slope**2 * distance
    _, figures = step_loss(policy, at_step(rollout, step), torch.zeros(2, 1), config)
    assert figures["step_kl"] == pytest.approx(float(expected.mean()), rel=1e-3) and figures["step_kl"] > 0


def test_the_step_kl_of_ddim_is_nats_a_dimension(config: GRPOConfig) -> None:
    policy = load_policy(config)
    disturb(policy)
    rollout = sample_epoch(policy, ["a cat", "red"], config.sample_batch_size, seeded(0))
    figures = [step_loss(policy, at_step(rollout, step), torch.zeros(2, 1), config)[1]["step_kl"] for step in range(3)]
    dimensions = rollout.latents[0, 0].numel()
    assert sum(figures) * dimensions == pytest.approx(float(policy.kl_to_reference(rollout)), rel=1e-3)
    assert min(figures) > 0
    ones = torch.ones(2, 1, 2, 2)
    assert step_kl(3 * ones, ones, torch.tensor([1.0, 2.0])).tolist() == [2.0, 0.5]


def test_the_first_update_is_the_policy_gradient(config: GRPOConfig) -> None:
    """At the weights that drew the samples: −mean over samples and steps of A ∇ log π, by plain autograd on all steps."""
    config = replace(config, train_batch_size=3, gradient_accumulation=2, max_grad_norm=1e9)
    run = begin("grpo", config, ["a cat"])
    run.optimizer = torch.optim.SGD(run.policy.parameters(), lr=1.0)
    policy, advantages = run.policy, torch.linspace(-1, 2, 6)
    rollout = sample_epoch(policy, ["a cat"] * 6, config.sample_batch_size, seeded(0))
    loss = -(advantages[:, None] * policy.log_prob(rollout)).mean()
    expected = torch.autograd.grad(loss, policy.parameters())
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    figures = improve(run, rollout, torch.arange(6), advantages, config, seeded(1), 0)
    assert figures["updates"] == 1 and figures["step_kl"] == pytest.approx(0, abs=1e-9)
    for (name, weight), gradient in zip(policy.state_dict().items(), expected, strict=True):
        torch.testing.assert_close(before[name] - weight, gradient, atol=1e-5, rtol=1e-3)


def test_advantages_are_cut(config: GRPOConfig) -> None:
    run = begin("grpo", config, ["a cat"])
    rollout = sample_epoch(run.policy, ["a cat"] * 4, config.sample_batch_size, seeded(0))
    figures = improve(run, rollout, torch.arange(4), torch.tensor([9.0, -9.0, 1.0, 9.0]), config, seeded(1), 0)
    assert figures["advantage_clipped"] == 0.75 and figures["loss"] == pytest.approx(-(5 - 5 + 1 + 5) / 4, abs=1e-3)


def test_the_kl_penalty_holds_the_policy_back(config: GRPOConfig, tmp_path: Path) -> None:
    config = replace(config, epochs=3, inner_epochs=2)
    kl = [
        train(replace(config, kl_weight=weight, out=tmp_path / str(weight)), reward=Brightness()).metrics[-1]["kl"]
        for weight in (0.0, 100.0)
    ]
    assert kl[1] < 0.5 * kl[0]


def test_a_selected_sample_at_unchanged_weights(config: GRPOConfig) -> None:
    policy = load_policy(config)
    rollout = sample_epoch(policy, ["a cat", "a dog"], config.sample_batch_size, seeded(0))
    part = single_steps(rollout, torch.tensor([1]), torch.tensor([1]))
    loss, figures = step_loss(policy, part, torch.tensor([[2.0]]), replace(config, kl_weight=0.0))
    assert loss.item() == pytest.approx(-2, abs=1e-3) and figures["ratio_mean"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "FluxPipeline"])
def test_the_other_classes_of_models(config: GRPOConfig, tmp_path: Path, name: str) -> None:
    small_pipeline(name, tmp_path / name)
    config = replace(config, model=str(tmp_path / name), size=64, window=1, epochs=2, samples_per_prompt=2)
    result = train(config, reward=Brightness())
    assert len(result.metrics) == 2 and result.metrics[1]["kl"] > 0 and result.metrics[1]["loss"] != 0


@pytest.mark.parametrize("name", ["tiny-sd", "sd3", "flux"])
def test_the_shipped_configs_are_valid(name: str) -> None:
    given = ["--prompts", "prompts.txt", "--reward", "brightness", "--out", "run"]
    validate(parse(GRPOConfig, ["--config", str(CONFIGS / f"{name}.yaml"), *given], "mmrlhf diffusion grpo"))


def binary(score: torch.Tensor, calls: int) -> torch.Tensor:
    """The first prompt's samples are all right, the other's all wrong."""
    return (torch.arange(len(score)) < len(score) // 2).float()


def outliers(score: torch.Tensor, calls: int) -> torch.Tensor:
    """Of a scale that needs dividing by the spread."""
    return 1e4 * score


@pytest.mark.parametrize(
    ("change", "reward", "problem", "advice"),
    [
        ({}, binary, "flat groups", "raise --samples-per-prompt or --eta"),
        ({"algorithm": "rloo"}, outliers, "clipped advantages", "raise --advantage-clip, or scale the reward down"),
        ({"samples_per_prompt": 2, "train_batch_size": 2}, None, "few samples", "raise --samples-per-prompt to 8"),
        ({"learning_rate": 1e-8, "train_batch_size": 8}, None, "small updates", "raise --learning-rate"),
        ({"learning_rate": 30.0, "train_batch_size": 8}, None, "large updates", "lower --learning-rate"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_keeps_a_run_from_learning_is_said(
    config: GRPOConfig,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    reward: Change | None,
    problem: str,
    advice: str,
) -> None:
    result = train(replace(config, num_steps=2, **change), reward=Brightness(reward))
    assert problem in result.metrics[-1]["problems"]
    told = [line for line in capsys.readouterr().err.splitlines() if f"not learning ({problem})" in line]
    assert len(told) == 1 and advice in told[0]


def test_one_abstention_is_left_out(config: GRPOConfig) -> None:
    def abstain(score: torch.Tensor, calls: int) -> torch.Tensor:
        score[0] = NAN
        return score

    line = train(replace(config, epochs=1), reward=Brightness(abstain)).metrics[0]
    assert line["abstained"] == 1 and line["rated_per_prompt"] == 3.5 and line["grad_norm"] > 0


def test_a_reward_that_is_no_number_stops_with_the_last_good_checkpoint(config: GRPOConfig) -> None:
    def spoil(score: torch.Tensor, calls: int) -> torch.Tensor:
        return score * NAN if calls > 2 else score

    with pytest.raises(UserError, match=r"the reward .* not a finite number in epoch 2: check what .*checkpoint.pt"):
        train(config, reward=Brightness(spoil))
    assert len(torch.load(config.out / "checkpoint.pt", weights_only=True)["metrics"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples_per_prompt": 1}, "--samples-per-prompt got 1, allowed is 2 or more: a group compares"),
        ({"prompts_per_epoch": 0}, "--prompts-per-epoch got 0, allowed is 1 or more"),
        ({"window": -1}, "--window got -1, allowed is 0 or more"),
        ({"window": 4}, "--window got 4, allowed is 0 to 3, the steps with noise of --num-steps 3"),
        ({"window_epochs": 0}, "--window-epochs got 0, allowed is 1 or more"),
        ({"eval_steps": 0}, "--eval-steps got 0, allowed is 1 or more"),
        ({"eval_steps": 5000}, "--eval-steps 5000: num_steps got 5000, allowed is 1 to 999"),
        ({"kl_weight": -1.0}, "--kl-weight got -1.0, allowed is 0 or more"),
        ({"clip_range": 0.0}, "--clip-range got 0.0, allowed is above 0"),
        ({"eta": 0.0}, "--eta got 0.0, allowed is above 0"),
        ({"prompts": Path("missing.txt")}, "cannot read missing.txt"),
    ],
    ids=str,
)
def test_bad_values_are_refused_before_anything_is_written(
    config: GRPOConfig, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(replace(config, **change), reward=Brightness())
    assert not config.out.exists()


def test_a_flow_needs_two_steps(config: GRPOConfig, flow: str) -> None:
    with pytest.raises(UserError, match="--num-steps got 1, of which none has noise"):
        train(replace(config, model=flow, num_steps=1), reward=Brightness())


@pytest.mark.slow
def test_a_flow_learns_to_draw_brighter_pictures(config: GRPOConfig, flow: str) -> None:
    """16 pixels, as one reward says little about each of many latents."""
    config = replace(
        config, model=flow, size=16, epochs=6, prompts_per_epoch=2, samples_per_prompt=32, sample_batch_size=64, clip_range=0.1,
        train_batch_size=16, lora_rank=4, eta=1.0, kl_weight=0.0, inner_epochs=2, learning_rate=1e-2, lora_targets="all",
    )  # fmt: skip
    train(config, reward=Brightness())
    policy = DiffusionPolicy.load(flow, lora=config.out, num_steps=3, guidance_scale=1.0, size=16, device="cpu")
    prompts = ["a cat", "a dog"] * 32
    after = Brightness()(generate_images(policy, prompts, seed=9, batch_size=64), prompts)
    with policy.reference():
        before = Brightness()(generate_images(policy, prompts, seed=9, batch_size=64), prompts)
    assert (after - before).mean() > 0.5 * before.std()  # the same noise; two seeds: 0.87, 0.94


@pytest.mark.slow
@pytest.mark.parametrize("window", [0, 1])
def test_two_processes_give_the_weights_of_one(config: GRPOConfig, tmp_path: Path, window: int) -> None:
    """Under `torchrun`, with batches that two do not divide.

    A part of a batch is rounded otherwise than the whole (1e-6), and AdamW moves a weight of nearly no gradient by its rate up
    or down: latents that are off by 2e-6 set single weights 4e-4 apart at a rate of 1e-2, hence 1e-3.
    """
    config = replace(
        config, epochs=2, prompts_per_epoch=2, samples_per_prompt=3, sample_batch_size=5, train_batch_size=3, kl_samples=3,
        num_steps=3, window=window, reward="brightness", learning_rate=1e-3,
    )  # fmt: skip
    options = ["--model", config.model, "--prompts", config.prompts, "--reward", "brightness", "--epochs", 2, "--window", window,
               "--prompts-per-epoch", 2, "--samples-per-prompt", 3, "--sample-batch-size", 5, "--train-batch-size", 3,
               "--num-steps", 3, "--guidance-scale", config.guidance_scale, "--lora-rank", config.lora_rank, "--eta", config.eta,
               "--learning-rate", config.learning_rate, "--clip-range", config.clip_range, "--kl-samples", 3,
               "--kl-weight", config.kl_weight, "--images-every", 0, "--device", "cpu", "--out", tmp_path / "two"]  # fmt: skip
    with launch([["diffusion", "grpo", *map(str, options)]], tmp_path) as launched:
        train(config)
        finish(launched, 1)
    one, two = (
        torch.load(out / "checkpoint.pt", weights_only=True)["policy"] for out in (config.out, tmp_path / "two")
    )
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], atol=1e-4, rtol=1e-2, msg=name)
