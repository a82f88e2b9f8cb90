"""Step-by-step preference optimization learns what its reward prefers, resumes as if never killed, and fits every family."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.policy import DiffusionPolicy
from diffusion.rollouts import single_steps
from diffusion.spo import step_loss, train
from diffusion.spo_config import SPOConfig, validate, window_steps
from diffusion.spo_paths import best_and_worst, sample_paths
from diffusion.step_rewards import after_step
from diffusion.training import load_policy
from mmrlhf.config import parse
from mmrlhf.errors import UserError
from mmrlhf.rewards.rules.simple import Brightness
from mmrlhf.seeding import seeded
from tests.diffusion.helpers import Brightness as Counted
from tests.diffusion.helpers import timeless, trained_weights
from tests.diffusion.test_policy import disturb
from tests.diffusion.test_preference_data import faithful
from tests.small_flow_models import small_pipeline
from tests.small_models import small_stable_diffusion

NAN = float("nan")


@pytest.fixture
def config(model: Path, tmp_path: Path) -> SPOConfig:
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    return SPOConfig(
        str(model), tmp_path / "run", prompts=tmp_path / "prompts.txt", reward="brightness", epochs=2, window=(0.0, 1.0),
        candidates=2, samples_per_epoch=2, sample_batch_size=1, train_batch_size=2, num_steps=2, guidance_scale=1.0,
        lora_rank=2, learning_rate=1e-2, kl_samples=1, images_every=0, device="cpu",
    )  # fmt: skip


def test_it_learns_to_draw_brighter_pictures(
    config: SPOConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faithful(monkeypatch)
    small_stable_diffusion(tmp_path / "v", prediction_type="v_prediction")
    config = replace(
        config, model=str(tmp_path / "v"), epochs=3, candidates=4, samples_per_epoch=16, sample_batch_size=16,
        train_batch_size=16, num_steps=2, lora_rank=4, lora_targets="all", learning_rate=5e-3, save_every=9,
    )  # fmt: skip
    first, *_, last = train(config, reward=Brightness()).metrics
    policy = DiffusionPolicy.load(config.model, lora=config.out, num_steps=2, guidance_scale=1.0, device="cpu")
    prompts = ["a cat", "a dog"] * 8
    after = policy.sample(prompts, seeded(9)).images.mean(dim=(1, 2, 3))
    with policy.reference():
        before = policy.sample(prompts, seeded(9)).images.mean(dim=(1, 2, 3))
    assert (after - before).mean() > 0.75 * before.std()
    assert last["reward_mean"] > first["reward_mean"] and first["kl"] == 0 < last["kl"]


def test_killed_and_resumed_is_never_killed(config: SPOConfig, tmp_path: Path) -> None:
    config = replace(config, window=(0.5, 1.0))
    whole = train(config, reward=Counted())
    wanted = {
        "epoch",
        "samples",
        "seconds",
        "kl",
        "loss",
        "reward_mean",
        "implicit_accuracy",
        "pairs",
        "ties",
        "spread",
    }
    assert wanted <= whole.metrics[0].keys() and whole.metrics[0]["samples"] == 2
    assert [line["pairs"] + line["ties"] for line in whole.metrics] == [2, 2] and whole.metrics[0]["spread"] > 0

    def kill(score: torch.Tensor, calls: int) -> torch.Tensor:
        if calls == 9:  # an epoch is two batches of one step of two candidates, then the two images
            raise KeyboardInterrupt
        return score

    again = replace(config, out=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        train(again, reward=Counted(kill))
    assert len((again.out / "metrics.jsonl").read_text().splitlines()) == 1
    assert timeless(train(replace(again, resume=True), reward=Counted()).metrics) == timeless(whole.metrics)
    ended = trained_weights(again.out)
    assert all(weight.equal(ended[name]) for name, weight in trained_weights(config.out).items())


@pytest.mark.parametrize("window", [range(2, 4), range(1, 3)])
def test_the_path_is_one_of_the_policy_and_pairs_are_of_its_steps(config: SPOConfig, window: range) -> None:
    """Outside the window the drawn path follows the policy's steps; inside, best and worst are judged by what they foresee."""
    policy = load_policy(replace(config, num_steps=4))
    prompts, judge = ["a cat", "red", "a dog"], after_step(Brightness())
    rollout, pairs = sample_paths(policy, prompts, window, judge, seeded(3), candidates=3)
    assert rollout.latents.shape[:2] == (3, 4) and rollout.next_latents[:, :-1].equal(rollout.latents[:, 1:])
    with torch.no_grad():
        torch.testing.assert_close(policy.log_prob(rollout), rollout.log_probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(policy.decode(rollout.clean), rollout.images)
    assert pairs.winners.shape == (3, 2, 4, 8, 8) and pairs.scores.shape == (3, 2, 3) and pairs.decided.all()
    for place, number in enumerate(window):
        for side, extreme in ((pairs.winners, pairs.scores.amax(dim=2)), (pairs.losers, pairs.scores.amin(dim=2))):
            latents = side[:, place]
            if number < 3:  # x̂_0 by the textbook's formula, of the ε that the network answers at the next step
                at = policy.sampler.timesteps[number + 1]
                alpha = policy.pipeline.scheduler.alphas_cumprod[at]
                with torch.no_grad():
                    noise = policy.predict(latents, at.expand(3), policy.context(prompts))
                latents = (latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()
            expected = Brightness()(policy.decode(latents), prompts)
            torch.testing.assert_close(extreme[:, place], expected, atol=1e-5, rtol=0)


def test_the_path_goes_on_from_a_candidate_at_random(config: SPOConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    faithful(monkeypatch)
    policy = load_policy(config)
    rollout, pairs = sample_paths(policy, ["a cat"] * 64, range(2), after_step(Brightness()), seeded(0), candidates=2)
    best = (rollout.next_latents == pairs.winners).flatten(2).all(dim=2)
    worst = (rollout.next_latents == pairs.losers).flatten(2).all(dim=2)
    assert (best ^ worst).all() and 0.35 < best.float().mean() < 0.65  # 128 fair choices: 0.5 ± 0.044


def test_best_and_worst_of_those_that_are_rated() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0], [NAN, 5.0, 6.0], [NAN, 2.0, NAN], [4.0, 4.0, 4.0], [NAN, NAN, NAN]])
    best, worst, decided = best_and_worst(scores)
    assert (best[:2].tolist(), worst[:2].tolist()) == ([1, 2], [0, 1])
    assert decided.tolist() == [True, True, False, False, False]
    assert best_and_worst(scores, 1.0)[2].tolist() == [True, False, False, False, False]


def test_a_step_is_the_formula_of_the_paper(config: SPOConfig) -> None:
    """−log σ of β times the difference of log-ratios, from the means of the two Gaussians."""
    policy = load_policy(config)
    disturb(policy)
    rollout, pairs = sample_paths(policy, ["a cat", "red"], range(2), after_step(Brightness()), seeded(0))
    numbers, rows = torch.tensor([[1], [0]]), torch.arange(2)
    winners, losers = pairs.winners[rows, numbers[:, 0]], pairs.losers[rows, numbers[:, 0]]
    loss, figures = step_loss(policy, single_steps(rollout, rows, numbers[:, 0]), winners, losers, 30.0)
    with torch.no_grad():
        _, now, sigma = next(policy.each_step(rollout, numbers))
        with policy.reference():
            _, then, _ = next(policy.each_step(rollout, numbers))
    squares = [
        ((side - then).square() - (side - now).square()).mean(dim=(1, 2, 3)) / (2 * sigma**2)
        for side in (winners, losers)
    ]
    margins = 30.0 * (squares[0] - squares[1])
    torch.testing.assert_close(loss.detach(), -torch.nn.functional.logsigmoid(margins).mean(), atol=1e-4, rtol=1e-4)
    assert figures["implicit_margin"] == pytest.approx(margins.mean().item(), abs=1e-4)
    loss.backward()
    assert sum(float(weight.grad.abs().sum()) for weight in policy.parameters() if weight.grad is not None) > 0


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
def test_every_family(config: SPOConfig, tmp_path: Path, name: str) -> None:
    small_pipeline(name, tmp_path / name)
    config = replace(config, model=str(tmp_path / name), size=64, guidance_scale=3.0, eta=0.7, samples_per_epoch=2)
    (line,) = train(replace(config, epochs=1), reward=Counted()).metrics
    assert line["pairs"] == (4 if name == "StableDiffusionXLPipeline" else 2)  # a flow's last step has no noise
    assert line["updates"] == 1 and line["grad_norm"] > 0


def test_a_reward_of_steps_judges_in_place_of_the_reward(config: SPOConfig) -> None:
    seen = []

    def darker(before: torch.Tensor, after: torch.Tensor, noise: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        seen.append(noise)
        return (before - after).mean(dim=(1, 2, 3))

    counted = Counted()
    (line,) = train(replace(config, epochs=1), reward=counted, step_reward=darker).metrics
    policy = load_policy(config)
    assert line["pairs"] == 4 and counted.calls == 2  # the reward only of the images
    levels = (1 - policy.pipeline.scheduler.alphas_cumprod[policy.sampler.timesteps]).sqrt()
    torch.testing.assert_close(torch.stack(seen)[:, 0].unique().flip(0), levels)


def test_a_reward_that_cannot_tell_them_apart_trains_nothing_and_says_so(
    config: SPOConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(config, epochs=1)
    (line,) = train(config, reward=Counted(lambda score, _: torch.zeros_like(score))).metrics
    assert (line["pairs"], line["ties"], line["updates"], line["problems"]) == (0, 4, 0, ["no winners"])
    assert "not learning (no winners) in epoch 0: at no step did the reward" in capsys.readouterr().err
    start = load_policy(config).state_dict()
    assert all(weight.equal(start[name]) for name, weight in trained_weights(config.out).items())


def test_windows() -> None:
    assert window_steps((0.25, 1.0), 20, 20) == range(5, 20)
    assert window_steps((0.25, 1.0), 10, 9) == range(3, 9)  # a flow's last step has no noise
    assert window_steps((0.0, 0.55), 20, 20) == range(11)
    assert window_steps((4.0, 10.0), 20, 20) == range(4, 10)
    parts = [window_steps((i / 3, (i + 1) / 3), 7, 7) for i in range(3)]
    assert [step for part in parts for step in part] == list(range(7))
    for window in ((12.0, 21.0), (0.0, 30.0), (0.96, 0.99), (20.0, 21.0)):
        with pytest.raises(UserError, match="--window got .* allowed are windows that hold some of the steps 0 to 19"):
            window_steps(window, 20, 20)


def test_the_command_line_takes_a_window_and_the_shipped_configs_are_valid() -> None:
    given = ["--model", "tiny-sd", "--out", "o", "--prompts", "p", "--reward", "warmth"]
    assert parse(SPOConfig, given, "spo").window == (0.25, 1.0)
    assert parse(SPOConfig, [*given, "--window", "4", "10"], "spo").window == (4.0, 10.0)
    for file in (Path(__file__).parents[2] / "configs" / "spo").glob("*.yaml"):
        validate(parse(SPOConfig, [*given, "--config", str(file)], "spo"))


def test_bad_input(config: SPOConfig) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"candidates": 1}, "--candidates got 1, allowed is 2 or more"),
        ({"margin": -0.1}, "--margin got -0.1, allowed is 0 or more"),
        ({"beta": 0.0}, "--beta got 0.0, allowed is above 0"),
        ({"eta": 0.0}, "--eta got 0.0, allowed is above 0"),
        ({"window": (0.5, 0.5)}, "--window got 0.5 0.5, allowed is 0 <= START < END"),
        ({"window": (0.5, 3.0)}, "--window got 0.5 3, .* or as whole numbers of steps"),
        ({"window": (0.0, NAN)}, "--window got 0 nan"),
        ({"window": (5.0, 9.0)}, "--window got 5 9, allowed are windows that hold some of the steps 0 to 1"),
        ({"prompts": Path("missing.txt")}, "cannot read .*missing.txt"),
    ]
    for change, words in wrong:
        with pytest.raises(UserError, match=words):
            train(replace(config, **change), reward=Counted())
    assert not config.out.exists()
    with pytest.raises(UserError, match=r"the reward gave shape \(1,\) for 2 images"):
        train(replace(config, sample_batch_size=2), reward=Counted(lambda score, _: score[:1]))
    endless = Counted(lambda score, calls: score / (0 if calls == 1 else 1))
    with pytest.raises(UserError, match="the reward of a candidate is not a finite number in epoch 0: check what"):
        train(replace(config, out=config.out / "other"), reward=endless)
