"""Pictures that depend on the seed, the prompt's place and the number alone; runs that go on where they stopped."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffusion.generate import GenerateConfig, generate, generate_images
from diffusion.policy import DiffusionPolicy
from mmrlhf.errors import UserError
from mmrlhf.images import load_image


@pytest.fixture
def config(model: Path, tmp_path: Path) -> GenerateConfig:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\nred\n")
    return GenerateConfig(
        model=str(model),
        prompts=prompts,
        out=tmp_path / "out",
        num_steps=2,
        images_per_prompt=2,
        batch_size=4,
        device="cpu",
    )


def test_images_and_their_list(config: GenerateConfig, capsys: pytest.CaptureFixture[str]) -> None:
    listed = generate(config)
    items = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [item["prompt"] for item in items] == ["a cat", "a cat", "a dog", "a dog", "red", "red"]
    policy = DiffusionPolicy.load(config.model, num_steps=2, device="cpu")
    images = generate_images(policy, ["a cat", "a dog", "red"], seed=0, images_per_prompt=2, batch_size=6)
    for item, image in zip(items, images, strict=True):
        torch.testing.assert_close(load_image(config.out / item["image"]), image, atol=1 / 255, rtol=0)
    assert len({image.sum().item() for image in images}) == 6
    assert "6 images (6 new), listed in" in capsys.readouterr().out


def test_a_stopped_run_goes_on(config: GenerateConfig, capsys: pytest.CaptureFixture[str]) -> None:
    listed = generate(config)
    before = {path.name: path.read_bytes() for path in config.out.glob("*.png")}
    for name in ("00000-01.png", "00002-00.png"):
        (config.out / name).unlink()
    listed.unlink()
    generate(config)
    assert "6 images (2 new)" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in config.out.glob("*.png")} == before
    assert listed.exists()


def test_noise_depends_on_seed_and_place_alone(model: Path) -> None:
    policy = DiffusionPolicy.load(str(model), num_steps=2, device="cpu")
    many = generate_images(policy, ["a cat", "a dog", "a dog"], seed=3, batch_size=2)
    torch.testing.assert_close(many, generate_images(policy, ["a cat", "a dog", "a dog"], seed=3), atol=1e-4, rtol=0)
    torch.testing.assert_close(many[:1], generate_images(policy, ["a cat"], seed=3), atol=1e-4, rtol=0)
    assert (many[1] - many[2]).abs().max() > 1e-3
    assert (many - generate_images(policy, ["a cat", "a dog", "a dog"], seed=4)).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_before_and_after_have_the_same_noise_in_every_step(model: Path) -> None:
    """With LoRA at its start, which changes nothing, two calls give the same pictures although each step draws noise."""
    plain = DiffusionPolicy.load(str(model), num_steps=4, device="cpu")
    adapted = DiffusionPolicy.load(str(model), num_steps=4, device="cpu", lora_rank=2)
    before, after = (generate_images(policy, ["a cat"], seed=0) for policy in (plain, adapted))
    torch.testing.assert_close(before, after, atol=1e-5, rtol=0)


def test_a_folder_of_other_settings_is_refused(config: GenerateConfig) -> None:
    generate(config)
    with pytest.raises(UserError, match="other settings .seed; seed was 0, now 1"):
        generate(replace(config, seed=1))
    config.prompts.write_text("a fish\n")
    with pytest.raises(UserError, match="other settings .prompts_sha256"):
        generate(config)


def test_bad_values_are_refused_before_anything_is_written(config: GenerateConfig) -> None:
    with pytest.raises(UserError, match="--images-per-prompt got 0, allowed is 1 or more"):
        generate(replace(config, images_per_prompt=0))
    with pytest.raises(UserError, match="no LoRA weights at"):
        generate(replace(config, lora=config.prompts.parent))
    assert not config.out.exists()
