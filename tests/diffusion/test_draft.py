"""The gradients are those of plain backpropagation; the trainer learns, resumes as if never killed, and refuses in one line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.draft import denoise, drawn_rewards, refl_loss, renoised, reward_loss, score, train, truncated
from diffusion.draft_config import DRaFTConfig, validate
from diffusion.generate import generate_images
from diffusion.policy import DiffusionPolicy
from diffusion.training import load_policy
from mmrlhf.config import parse
from mmrlhf.errors import UserError
from mmrlhf.seeding import seeded
from tests.diffusion.helpers import Brightness, timeless, trained_weights
from tests.small_flow_models import small_pipeline

CONFIGS = Path(__file__).parents[2] / "configs" / "draft"
METHODS = ("draft-k", *(pytest.param(name, marks=pytest.mark.slow) for name in ("draft-lv", "alignprop", "refl")))
PROMPTS = ["a cat", "a dog"]


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small-sd3"
    small_pipeline("StableDiffusion3Pipeline", folder)
    return folder


@pytest.fixture
def config(model: Path, tmp_path: Path) -> DRaFTConfig:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\nred\n")
    return DRaFTConfig(
        model=str(model), prompts=prompts, reward="brightness", out=tmp_path / "run", epochs=3, samples_per_epoch=6,
        train_batch_size=2, gradient_accumulation=2, num_steps=4, guidance_scale=1.0, lora_rank=2, learning_rate=1e-2,
        kl_samples=2, images_every=0, device="cpu", size=64,
    )  # fmt: skip


def disturbed(config: DRaFTConfig) -> DiffusionPolicy:
    """A policy whose LoRA has gradients in all its weights."""
    policy, generator = load_policy(config), seeded(5)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return policy


def gradient(policy: DiffusionPolicy, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, policy.parameters()))


def by_hand(policy: DiffusionPolicy, noise: torch.Tensor, last: int) -> torch.Tensor:
    """Every step with a graph, cut before the `last` ones: the mean brightness."""
    context, latents = policy.context(PROMPTS), noise
    for left, step in zip(range(len(policy.sampler.timesteps), 0, -1), policy.sampler.timesteps, strict=True):
        latents = latents.detach() if left == last else latents
        steps = step.expand(len(noise))
        output = policy.predict(latents, policy.sampler.times(steps), context)
        latents = policy.sampler.mean(output, latents, policy.sampler.coefficients(steps))
    return policy.decode_with_gradients(latents).mean()


@pytest.mark.parametrize("last", [1, 2, 4])
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_the_gradient_passes_the_last_steps_only(config: DRaFTConfig, sd3: Path, family: str, last: int) -> None:
    """All steps: full backpropagation; fewer: that with the earlier state detached. And the picture is the sampler's."""
    config = replace(config, guidance_scale=2.0, model=str(sd3) if family == "sd3" else config.model)
    policy = disturbed(config)
    noise = torch.randn(2, *policy.latent_shape, generator=seeded(3))
    latents = truncated(policy, noise, policy.context(PROMPTS), last, seeded(0))
    loss, _ = reward_loss(score(policy, Brightness(), latents, PROMPTS))
    expected = by_hand(policy, noise, last)
    torch.testing.assert_close(loss, -expected)
    got, wanted = gradient(policy, 1e3 * loss), gradient(policy, -1e3 * expected)
    assert max(float(value.abs().max()) for value in wanted) > 1e-4
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-3)
    images = policy.sample(PROMPTS, seeded(0), initial_noise=noise).images
    torch.testing.assert_close(images.mean(), expected.detach())


def test_more_steps_have_another_gradient(config: DRaFTConfig) -> None:
    policy = disturbed(config)
    noise = torch.randn(2, *policy.latent_shape, generator=seeded(3))
    norms = [sum(float(part.norm()) for part in gradient(policy, by_hand(policy, noise, last))) for last in (1, 4)]
    assert abs(norms[0] - norms[1]) > 0.01 * norms[0]


def test_draft_lv_averages_renoisings_of_the_detached_sample(config: DRaFTConfig) -> None:
    policy = disturbed(config)
    rewards, last = drawn_rewards(
        policy, Brightness(), PROMPTS, replace(config, method="draft-lv", renoisings=3), seeded(1)
    )
    generator, context = seeded(1), policy.context(PROMPTS)
    noise = torch.randn(2, *policy.latent_shape, generator=generator)
    with torch.no_grad():
        clean = denoise(policy, noise, context, range(4), generator)
    step = policy.sampler.timesteps[-1].expand(2)
    alpha = policy.sampler.alphas[step[0]].float()  # type: ignore[attr-defined]
    losses = []
    for _ in range(3):
        noised = alpha.sqrt() * clean + (1 - alpha).sqrt() * torch.randn(clean.shape, generator=generator)
        at = policy.sampler.coefficients(step)
        latents = policy.sampler.mean(policy.predict(noised, step, context), noised, at)
        losses.append(policy.decode_with_gradients(latents).mean())
    expected = torch.stack(losses).mean()
    assert last == 1
    torch.testing.assert_close(rewards.mean(), expected)
    for one, other in zip(gradient(policy, rewards.mean()), gradient(policy, expected), strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-4)


def test_renoising_a_flow_ends_near_its_sample(config: DRaFTConfig, sd3: Path) -> None:
    """The last step starts at a small σ: the sample it is made of is still seen in what comes out."""
    policy = load_policy(replace(config, model=str(sd3), num_steps=40))
    clean = torch.randn(2, *policy.latent_shape, generator=seeded(0))
    out = renoised(policy, clean, policy.context(PROMPTS), seeded(1))
    assert out.requires_grad and (out.detach() - clean).square().mean() < 0.5


def test_refl_jumps_from_one_of_the_last_steps(config: DRaFTConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = disturbed(replace(config, num_steps=8))
    calls: list[int] = []
    own = policy.predict

    def counted(*given: Any) -> torch.Tensor:
        calls.append(1)
        return own(*given)

    monkeypatch.setattr(policy, "predict", counted)
    counts = set()
    for seed in range(8):
        calls.clear()
        drawn_rewards(policy, Brightness(), PROMPTS, replace(config, method="refl"), seeded(seed))
        counts.add(len(calls))
    assert counts == {7, 8}  # steps 0 to 5 or 6 without gradients, then the jump


def test_the_jump_of_refl_is_the_clean_sample(config: DRaFTConfig) -> None:
    """With one step it starts at noise: (x − √(1−ᾱ) ε̂)/√ᾱ."""
    config = replace(config, num_steps=1, method="refl")
    policy = disturbed(config)
    rewards, _ = drawn_rewards(policy, Brightness(), PROMPTS, config, seeded(2))
    noise = torch.randn(2, *policy.latent_shape, generator=seeded(2))
    step = policy.sampler.timesteps[0].expand(2)
    alpha = policy.sampler.alphas[step[0]].float()  # type: ignore[attr-defined]
    output = policy.predict(noise, step, policy.context(PROMPTS))
    clean = (noise - (1 - alpha).sqrt() * output) / alpha.sqrt()
    expected = policy.decode_with_gradients(clean).mean(dim=(1, 2, 3))
    torch.testing.assert_close(rewards, expected)
    for one, other in zip(gradient(policy, rewards.sum()), gradient(policy, expected.sum()), strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-4)


def test_alignprop_draws_the_number_of_steps(config: DRaFTConfig) -> None:
    policy = load_policy(config)
    own = replace(config, method="alignprop")
    assert {drawn_rewards(policy, Brightness(), PROMPTS, own, seeded(seed))[1] for seed in range(12)} == {1, 2, 3, 4}


def test_losses_in_closed_form() -> None:
    rewards = torch.tensor([1.0, 3.0, float("nan"), -1.0], requires_grad=True)
    loss, figures = refl_loss(rewards)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1e-3 * (1 + 0 + 3) / 3) and figures["reached"] == pytest.approx(1 / 3)
    torch.testing.assert_close(rewards.grad, torch.tensor([-1.0, 0.0, 0.0, -1.0]) * 1e-3 / 3)
    assert float(reward_loss(rewards)[0].detach()) == pytest.approx(-1.0)
    whole, parts = reward_loss(rewards[:2])
    assert float(whole.detach()) == -2.0 == parts["loss"]


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_to_draw_brighter_pictures(config: DRaFTConfig, method: Any) -> None:
    check_learning(replace(config, method=method, refl_weight=1.0))


def test_it_learns_on_a_flow_model(config: DRaFTConfig, sd3: Path) -> None:
    """All weights: attention moves next to nothing in a random transformer."""
    check_learning(replace(config, model=str(sd3), steps_with_gradient=2, lora_rank=0, learning_rate=5e-3))


def check_learning(config: DRaFTConfig) -> None:
    config = replace(
        config,
        epochs=4,
        samples_per_epoch=8,
        train_batch_size=4,
        gradient_accumulation=1,
        lora_rank=2 * config.lora_rank,
    )
    metrics = train(config, reward=Brightness()).metrics
    before, after = load_policy(config), load_policy(config)
    after.load_state_dict(trained_weights(config.out))
    prompts = PROMPTS * 4
    dark, bright = (
        Brightness()(generate_images(policy, prompts, seed=9, batch_size=8), prompts) for policy in (before, after)
    )
    assert (bright - dark).mean() > dark.std() and (bright > dark).all()
    assert metrics[-1]["reward_mean"] > metrics[0]["reward_mean"]
    assert metrics[0]["kl"] == 0 < metrics[-1]["kl"]
    assert {"epoch", "samples", "seconds", "reward_std", "loss", "grad_norm"} <= metrics[0].keys()


@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed_is_never_killed(config: DRaFTConfig, tmp_path: Path, method: Any) -> None:
    config = replace(config, method=method, eta=0.5, epochs=2, samples_per_epoch=4, gradient_accumulation=1)
    reward = Brightness()
    whole = train(config, reward=reward)

    def kill(brightness: torch.Tensor, calls: int) -> torch.Tensor:
        if calls == reward.calls - 1:
            raise KeyboardInterrupt
        return brightness

    again = replace(config, out=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        train(again, reward=Brightness(kill))
    resumed = train(replace(again, resume=True), reward=Brightness())
    assert timeless(resumed.metrics) == timeless(whole.metrics)
    ended = trained_weights(again.out)
    assert all(weight.equal(ended[name]) for name, weight in trained_weights(config.out).items())


def test_checkpointing_changes_no_gradient(config: DRaFTConfig, tmp_path: Path) -> None:
    """Of the network and of the autoencoder."""
    runs = []
    for checkpointing in (False, True):
        own = replace(config, epochs=1, samples_per_epoch=2, steps_with_gradient=3, out=tmp_path / str(checkpointing))
        runs.append(train(replace(own, gradient_checkpointing=checkpointing), reward=Brightness()).metrics[0])
    assert runs[1]["grad_norm"] == pytest.approx(runs[0]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("name", ["file-size", "jpeg-incompressibility"])
def test_a_reward_without_gradient_is_refused_before_anything_is_written(config: DRaFTConfig, name: str) -> None:
    reward = Brightness()
    reward.differentiable = False
    with pytest.raises(UserError, match=f"--reward got '{name}', which is not differentiable: allowed .*ddpo or grpo"):
        train(replace(config, reward=name), reward=reward)
    assert not config.out.exists()


@pytest.mark.parametrize("constant", [lambda score, _: torch.ones_like(score), lambda score, _: 0 * score + 1])
def test_a_constant_reward_stops_the_run(config: DRaFTConfig, constant: Any) -> None:
    with pytest.raises(UserError, match="the reward gives no gradient: it is constant, .* give --reward"):
        train(config, reward=Brightness(constant))
    assert not (config.out / "checkpoint.pt").exists()


def test_refl_is_at_rest_above_its_target_and_says_so(config: DRaFTConfig, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(replace(config, epochs=1, method="refl", refl_target=-1.0), reward=Brightness())
    assert result.metrics[0]["reached"] == 1 and result.metrics[0]["updates"] == 0 == result.metrics[0]["loss"]
    assert result.metrics[0]["problems"] == ["target reached"]
    told = capsys.readouterr().err
    assert (
        "not learning (target reached) in epoch 0: every sample's reward was at or above --refl-target -1 (lowest"
        in told
    )
    assert "raise --refl-target" in told


def test_abstentions_are_left_out_of_loss_and_gradient(config: DRaFTConfig) -> None:
    """Even where the derivative behind a NaN is none."""

    def abstain(brightness: torch.Tensor, calls: int) -> torch.Tensor:
        spoilt = torch.cat([(brightness[:1] - 2).sqrt(), brightness[1:]])
        return spoilt if calls == 1 else brightness

    metrics = train(replace(config, epochs=2), reward=Brightness(abstain)).metrics
    assert [line["abstained"] for line in metrics] == [1, 0] and metrics[0]["loss"] < 0 < metrics[0]["grad_norm"]
    assert all(weight.isfinite().all() for weight in trained_weights(config.out).values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_stops_with_the_last_good_checkpoint(config: DRaFTConfig, bad: float) -> None:
    def spoil(brightness: torch.Tensor, calls: int) -> torch.Tensor:
        return brightness * bad if calls > 3 else brightness

    with pytest.raises(UserError, match=r"the reward.* not a finite number in epoch 1: check what .*checkpoint.pt"):
        train(config, reward=Brightness(spoil))
    assert len(torch.load(config.out / "checkpoint.pt", weights_only=True)["metrics"]) == 1


def test_the_kl_budget_stops_and_takes_the_last_update_back(config: DRaFTConfig) -> None:
    result = train(replace(config, kl_budget=1e-9), reward=Brightness())
    assert len(result.metrics) == 1 and "over the budget" in result.stopped
    start = load_policy(config).state_dict()
    assert all(weight.equal(start[name]) for name, weight in trained_weights(config.out).items())


def test_a_reward_of_another_shape_is_refused(config: DRaFTConfig) -> None:
    with pytest.raises(UserError, match=r"the reward gave shape \(2, 1\) for 2 images, allowed is one number an image"):
        train(config, reward=Brightness(lambda brightness, _: brightness[:, None]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps_with_gradient": 5}, "--steps-with-gradient got 5, allowed is 1 up to --num-steps 4"),
        ({"renoisings": 0}, "--renoisings got 0, allowed is 1 or more"),
        ({"refl_weight": 0.0}, "--refl-weight got 0.0, allowed is above 0"),
        ({"refl_target": float("nan")}, "--refl-target got nan, allowed is a finite number"),
    ],
)
def test_bad_options_are_refused(config: DRaFTConfig, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(replace(config, **options), reward=Brightness())


@pytest.mark.parametrize("name", ["tiny-sd", "sd15"])
def test_the_shipped_configs_are_valid(name: str) -> None:
    given = ["--prompts", "prompts.txt", "--reward", "brightness", "--out", "run"]
    validate(parse(DRaFTConfig, ["--config", str(CONFIGS / f"{name}.yaml"), *given], "mmrlhf diffusion draft"))
