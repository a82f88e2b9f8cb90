"""Each class of pipelines samples what diffusers samples, gives its log-probs back, and saves a LoRA that diffusers loads."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, FluxPipeline

from diffusion.ddpo import train
from diffusion.ddpo_config import DDPOConfig
from diffusion.families import FAMILIES
from diffusion.loading import add_lora
from diffusion.policy import DiffusionPolicy
from mmrlhf.errors import UserError
from mmrlhf.seeding import seeded
from tests.diffusion.test_policy import disturb
from tests.small_flow_models import small_pipeline

NAMES = ("StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline")
PROMPTS = ["a cat", "red dog", "a cat"]


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / request.param
    small_pipeline(request.param, path)
    return path


def load(folder: Path, **options: Any) -> DiffusionPolicy:
    return DiffusionPolicy.load(
        str(folder),
        **{"lora_rank": 2, "num_steps": 4, "guidance_scale": 3.0, "device": "cpu", "size": 64, **options},
    )


def plain_pipeline(folder: Path) -> Any:
    """As a user of diffusers loads it, with DDIM where it is not a flow."""
    pipeline = getattr(diffusers, folder.name).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if folder.name == "StableDiffusionXLPipeline":
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    return pipeline


def draw(pipeline: Any, noise: torch.Tensor, guidance: float) -> torch.Tensor:
    latents = FluxPipeline._pack_latents(noise, *noise.shape) if isinstance(pipeline, FluxPipeline) else noise
    images: torch.Tensor = pipeline(
        PROMPTS, num_inference_steps=4, guidance_scale=guidance, latents=latents, output_type="pt", height=64, width=64
    ).images
    return images


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_samples_are_those_of_the_diffusers_pipeline(folder: Path, guidance: float) -> None:
    policy = load(folder, guidance_scale=guidance, eta=0.0)
    noise = torch.randn(3, *policy.latent_shape, generator=seeded(0))
    rollout = policy.sample(PROMPTS, seeded(1), initial_noise=noise)
    torch.testing.assert_close(rollout.images, draw(plain_pipeline(folder), noise, guidance), atol=1e-4, rtol=0)
    assert rollout.log_probs.shape == (3, 0)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_log_prob_gives_the_sampled_values_at_unchanged_weights(
    folder: Path, guidance: float, dtype: str, tolerance: float
) -> None:
    policy = load(folder, guidance_scale=guidance, dtype=dtype)
    disturb(policy)
    rollout = policy.sample(PROMPTS, seeded(0))
    assert rollout.log_probs.shape == (3, 4 if folder.name == "StableDiffusionXLPipeline" else 3)
    log_probs = policy.log_prob(rollout)
    torch.testing.assert_close(log_probs, rollout.log_probs, atol=tolerance, rtol=0)
    log_probs.mean().backward()
    assert sum(float(weight.grad.abs().sum()) for weight in policy.parameters() if weight.grad is not None) > 0


def test_a_saved_lora_draws_the_same_in_diffusers(folder: Path, tmp_path: Path) -> None:
    policy = load(folder, eta=0.0, lora_targets="all", lora_alpha=6.0)
    noise = torch.randn(3, *policy.latent_shape, generator=seeded(0))
    start = policy.sample(PROMPTS, seeded(1), initial_noise=noise).images
    disturb(policy, 0.2)
    moved = policy.sample(PROMPTS, seeded(1), initial_noise=noise).images
    assert (moved - start).abs().max() > 1e-3
    with policy.reference():
        torch.testing.assert_close(policy.sample(PROMPTS, seeded(1), initial_noise=noise).images, start)
    pipeline = plain_pipeline(folder)
    pipeline.load_lora_weights(str(policy.save(tmp_path)))
    torch.testing.assert_close(draw(pipeline, noise, 3.0), moved, atol=1e-4, rtol=0)
    again = load(folder, lora_rank=None, lora=tmp_path, eta=0.0)
    torch.testing.assert_close(again.sample(PROMPTS, seeded(1), initial_noise=noise).images, moved, atol=1e-4, rtol=0)


def test_all_weights_are_saved_as_a_pipeline(folder: Path, tmp_path: Path) -> None:
    policy = load(folder, lora_rank=0, eta=0.0)
    disturb(policy, 0.02)
    noise = torch.randn(3, *policy.latent_shape, generator=seeded(0))
    moved = policy.sample(PROMPTS, seeded(1), initial_noise=noise).images
    saved = policy.save(tmp_path)
    pipeline = getattr(diffusers, folder.name).from_pretrained(saved)
    pipeline.set_progress_bar_config(disable=True)
    if folder.name == "StableDiffusionXLPipeline":
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    torch.testing.assert_close(draw(pipeline, noise, 3.0), moved, atol=1e-4, rtol=0)


def test_ddpo_trains_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\nred dog\n")
    config = DDPOConfig(
        str(folder), tmp_path / "run", prompts=tmp_path / "prompts.txt", reward="brightness", epochs=2, samples_per_epoch=4,
        sample_batch_size=4, train_batch_size=2, num_steps=3, guidance_scale=3.0, eta=0.7, size=64, learning_rate=1e-2,
        clip_range=1e-2, images_every=0, device="cpu", gradient_checkpointing=True,
    )  # fmt: skip
    metrics = train(config).metrics
    assert metrics[0]["ratio_max"] != 1 and metrics[1]["kl"] > 0
    pipeline = plain_pipeline(folder)
    pipeline.load_lora_weights(str(tmp_path / "run"))


def test_noise_in_a_window_of_steps(folder: Path) -> None:
    policy = load(folder)
    rollout = policy.sample(PROMPTS, seeded(0), noisy=[1, 2])
    assert rollout.log_probs.shape == (3, 2)
    assert rollout.timesteps[0].tolist() == policy.sampler.timesteps[1:3].tolist()
    with torch.no_grad():
        torch.testing.assert_close(policy.log_prob(rollout), rollout.log_probs, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="noisy steps got"):
        policy.sample(PROMPTS, seeded(0), noisy=[4])


def test_images_become_latents_and_come_back(folder: Path) -> None:
    policy = load(folder)
    latents = policy.encode_images(torch.rand(2, 3, 64, 64, generator=seeded(0)))
    assert latents.shape == (2, *policy.latent_shape)
    config = policy.vae.config
    posterior = policy.vae.encode(2 * torch.rand(2, 3, 64, 64, generator=seeded(0)) - 1).latent_dist.mode()
    torch.testing.assert_close(latents, (posterior - (config.get("shift_factor") or 0)) * config.scaling_factor)


def test_a_size_that_does_not_fit_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="size got 72, allowed are multiples of 16"):
        load(folder, size=72)


def test_every_family_is_listed_by_its_pipeline() -> None:
    assert set(FAMILIES) == {"StableDiffusionPipeline", *NAMES}
    assert all(hasattr(diffusers, name) for name in FAMILIES)


def test_lora_targets_that_match_nothing() -> None:
    with pytest.raises(UserError, match="the LoRA targets to_q match no layer of Linear"):
        add_lora(torch.nn.Linear(2, 2), 2, None, ("to_q",), 0)
