"""A policy must sample what diffusers samples, and give the sampled log-probs back at unchanged weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from diffusion.ddim import gaussian_kl
from diffusion.policy import DiffusionPolicy
from mmrlhf.errors import UserError
from mmrlhf.seeding import seeded
from mmrlhf.types import Policy
from tests.small_models import small_stable_diffusion

PROMPTS = ["a cat", "a dog", "a cat"]


def load(model: Path, **options: Any) -> DiffusionPolicy:
    return DiffusionPolicy.load(
        str(model), **{"lora_rank": 2, "num_steps": 4, "guidance_scale": 3.0, "device": "cpu", **options}
    )


def disturb(policy: DiffusionPolicy, size: float = 0.05) -> None:
    """Move all trained weights, as training would."""
    generator = seeded(7)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_samples_are_those_of_the_diffusers_pipeline(model: Path, guidance: float) -> None:
    """DDIM without noise from the same start: the picture that StableDiffusionPipeline makes."""
    policy = load(model, guidance_scale=guidance, eta=0.0)
    start = torch.randn(3, 4, 8, 8, generator=seeded(0))
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(PROMPTS, num_inference_steps=4, guidance_scale=guidance, latents=start, output_type="pt").images
    rollout = policy.sample(PROMPTS, seeded(1), initial_noise=start)
    torch.testing.assert_close(rollout.images, theirs, atol=1e-4, rtol=0)
    assert rollout.log_probs.shape == (3, 0)  # no noise, no log-probability


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("rank", [0, 2])
def test_log_prob_gives_the_sampled_values_at_unchanged_weights(
    model: Path, guidance: float, dtype: str, tolerance: float, rank: int
) -> None:
    if rank == 0 and dtype != "float32":
        pytest.skip("all weights are trained in float32 only")
    policy = load(model, guidance_scale=guidance, dtype=dtype, lora_rank=rank)
    if rank:
        disturb(policy)
    rollout = policy.sample(PROMPTS, seeded(0))
    assert rollout.log_probs.shape == (3, 4)
    log_probs = policy.log_prob(rollout)
    torch.testing.assert_close(log_probs, rollout.log_probs, atol=tolerance, rtol=0)
    log_probs.mean().backward()
    gradients = [weight.grad for weight in policy.parameters()]
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    disturb(policy)
    assert (policy.log_prob(rollout) - rollout.log_probs).abs().max() > 10 * tolerance or dtype == "bfloat16"


def test_log_prob_of_some_steps_in_any_order(model: Path) -> None:
    policy = load(model)
    rollout = policy.sample(PROMPTS, seeded(0))
    steps = torch.tensor([[3, 0], [1, 2], [0, 0]])
    with torch.no_grad():
        torch.testing.assert_close(
            policy.log_prob(rollout, steps), policy.log_prob(rollout).gather(1, steps), atol=1e-5, rtol=0
        )


def test_the_gradient_of_the_log_prob_against_finite_differences(model: Path) -> None:
    policy = load(model)
    disturb(policy)
    rollout = policy.sample(["a cat"], seeded(0))
    weight = max(policy.parameters(), key=torch.numel)
    direction = torch.randn(weight.shape, generator=seeded(1))
    policy.log_prob(rollout).sum().backward()
    assert weight.grad is not None
    slope = float((weight.grad * direction).sum())
    with torch.no_grad():
        weight.add_(1e-2 * direction)
        above = float(policy.log_prob(rollout).sum())
        weight.sub_(2e-2 * direction)
        below = float(policy.log_prob(rollout).sum())
    assert (above - below) / 2e-2 == pytest.approx(slope, rel=0.05, abs=1e-3)


def test_gradients_are_the_same_with_checkpointing(model: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = load(model, gradient_checkpointing=checkpointing)
        disturb(policy)
        rollout = policy.sample(["a cat"], seeded(0))
        policy.log_prob(rollout, torch.tensor([[1]])).sum().backward()
        gradients.append([weight.grad for weight in policy.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_each_prompt_is_encoded_once_and_as_the_pipeline_encodes_it(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load(model)
    asked: list[str] = []
    encode = policy.pipeline.encode_prompt

    def watched(texts: list[str], *rest: Any) -> Any:
        asked.extend(texts)
        return encode(texts, *rest)

    monkeypatch.setattr(policy.pipeline, "encode_prompt", watched)
    rollout = policy.sample(PROMPTS, seeded(0))
    policy.log_prob(rollout)
    policy.sample(["red", "a cat"], seeded(1))
    assert sorted(asked) == ["", "a cat", "a dog", "red"]
    theirs, empty = encode("a dog", torch.device("cpu"), 1, True)
    torch.testing.assert_close(policy.context(["a dog"])["text"], torch.cat([empty, theirs]))


@pytest.mark.parametrize(("guidance", "rows"), [(1.0, 3), (3.0, 6)])
def test_guidance_is_one_pass_of_both_halves_and_none_at_1(
    model: Path, guidance: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load(model, guidance_scale=guidance)
    sizes: list[int] = []
    forward = policy.network.forward

    def watched(inputs: torch.Tensor, *rest: Any, **named: Any) -> Any:
        sizes.append(len(inputs))
        return forward(inputs, *rest, **named)

    monkeypatch.setattr(policy.network, "forward", watched)
    rollout = policy.sample(PROMPTS, seeded(0))
    policy.log_prob(rollout)
    assert sizes == [rows] * 8


@pytest.mark.parametrize("rank", [0, 2])
def test_reference_is_the_start_and_comes_back(model: Path, rank: int) -> None:
    policy = load(model, lora_rank=rank)
    generators = lambda: [seeded(0, i) for i in range(3)]  # noqa: E731
    start = policy.sample(PROMPTS, generators()).images
    disturb(policy)
    moved = policy.sample(PROMPTS, generators()).images
    assert (moved - start).abs().max() > 1e-3
    with policy.reference():
        assert policy.sample(PROMPTS, generators()).images.equal(start)
    assert policy.sample(PROMPTS, generators()).images.equal(moved)


@pytest.mark.parametrize("rank", [0, 2])
def test_kl_to_reference_is_the_sum_over_steps(model: Path, rank: int) -> None:
    policy = load(model, lora_rank=rank)
    assert float(policy.kl_to_reference(policy.sample(PROMPTS, seeded(0)))) == 0
    disturb(policy)
    rollout = policy.sample(PROMPTS, seeded(0))
    expected = 0.0
    original = load(model, lora_rank=None)
    with torch.no_grad():
        for step in range(4):
            column = torch.full((3, 1), step)
            _, mean, sigma = next(policy.each_step(rollout, column))
            _, start, _ = next(original.each_step(rollout, column))
            expected += float(gaussian_kl(mean, start, sigma).mean())
    assert float(policy.kl_to_reference(rollout)) == pytest.approx(expected, rel=1e-4)
    assert expected > 0


def test_kl_to_reference_is_what_the_log_ratios_average_to(model: Path) -> None:
    """E[Σ_t (log π − log π_ref)] over the policy's own paths, the log-probs taken as sums over the 256 latent dimensions."""
    policy = load(model, guidance_scale=1.0)
    disturb(policy, 0.1)
    rollout = policy.sample(["a cat"] * 96, seeded(0))
    with policy.reference(), torch.no_grad():
        reference = policy.log_prob(rollout)
    path = 256 * (rollout.log_probs - reference).sum(dim=1)
    exact = float(policy.kl_to_reference(rollout))
    assert abs(float(path.mean()) - exact) < 4 * float(path.std()) / 96**0.5
    assert exact > float(path.std()) / 96**0.5  # else any small figure would do


def test_noise_of_a_sample_does_not_depend_on_its_neighbours(model: Path) -> None:
    policy = load(model)
    together = policy.sample(["a cat", "a dog", "red"], [seeded(0, i) for i in range(3)]).images
    alone = policy.sample(["red"], [seeded(0, 2)]).images
    torch.testing.assert_close(together[2:], alone, atol=1e-5, rtol=0)


def test_a_step_without_noise_is_not_in_the_rollout(tmp_path: Path) -> None:
    pipeline = small_stable_diffusion(tmp_path)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, set_alpha_to_one=True)
    policy = DiffusionPolicy(pipeline, num_steps=4, guidance_scale=1.0)
    rollout = policy.sample(PROMPTS, seeded(0))
    assert rollout.latents.shape == rollout.next_latents.shape == (3, 3, 4, 8, 8)
    assert rollout.timesteps.tolist() == [[751, 501, 251]] * 3
    assert not policy.decode(rollout.next_latents[:, -1]).equal(rollout.images)  # the last step was still taken


def test_other_schedulers_and_predictions(tmp_path: Path) -> None:
    small_stable_diffusion(tmp_path, scheduler="pndm", prediction_type="v_prediction")
    policy = load(tmp_path)
    rollout = policy.sample(PROMPTS, seeded(0))
    with torch.no_grad():
        torch.testing.assert_close(policy.log_prob(rollout), rollout.log_probs, atol=1e-5, rtol=0)
    assert rollout.images.shape == (3, 3, 64, 64) and 0 <= rollout.images.min() and rollout.images.max() <= 1


def test_a_checkpoint_of_another_rank_is_refused(model: Path) -> None:
    with pytest.raises(UserError, match="do not fit the model: resume with the model and --lora-rank"):
        load(model).load_state_dict(load(model, lora_rank=3).state_dict())


def test_it_is_a_policy(model: Path) -> None:
    policy: Policy = load(model)
    assert isinstance(policy, Policy)
    with policy.reference() as nothing:
        assert nothing is None


def test_the_global_generator_is_left_alone(model: Path) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    load(model).sample(PROMPTS, seeded(0))
    assert torch.random.get_rng_state().equal(before)
