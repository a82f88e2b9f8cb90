"""Pictures that depend on the seed, the prompt's place and the number alone; runs that go on where they stopped."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.generate import GenerateConfig, generate, generate_images
from diffusion.policy import DiffusionPolicy
from mmrlhf.errors import UserError
from mmrlhf.images import load_image
from tests.diffusion.test_loading import edit
from tests.diffusion.test_policy import disturb, load


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


def test_pictures_of_other_weights_are_not_taken_for_new_ones(config: GenerateConfig, model: Path) -> None:
    """The LoRA at the same path, trained on, and the model at the same path, replaced, are refused; moved, they are not."""
    policy = load(model)
    lora = policy.save(config.out.with_name("lora"))
    listed = generate(replace(config, lora=lora))
    moved = replace(
        config,
        lora=lora.rename(lora.with_name("moved")),
        model=str(shutil.copytree(model, config.out.with_name("model"))),
        prompts=config.prompts.rename(config.prompts.with_name("other.txt")),
    )
    assert generate(moved) == listed
    edit(Path(moved.model) / "unet" / "config.json", _class_name="Other")
    with pytest.raises(UserError, match=r"other settings \(model_sha256"):
        generate(moved)
    disturb(policy)
    policy.save(lora.with_name("moved"))
    with pytest.raises(UserError, match=r"other settings \(lora_sha256"):
        generate(replace(moved, model=config.model))
    with pytest.raises(UserError, match=r"other settings \(lora, lora_sha256; lora was .*, now None"):
        generate(replace(moved, model=config.model, lora=None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance_scale": float("inf")}, "--guidance-scale got inf, allowed is 0 or more"),
        ({"guidance_scale": float("nan")}, "--guidance-scale got nan, allowed is 0 or more"),
        ({"eta": float("inf")}, "--eta got inf, allowed is 0 or more"),
        ({"num_steps": 5000}, "num_steps got 5000, allowed is 1 to 999"),
        ({"seed": -1}, "--seed got -1, allowed is 0 to "),
        ({"seed": 2**63}, "--seed got 9223372036854775808, allowed is 0 to"),
        (
            {"prompts": Path("missing.txt")},
            "cannot read missing.txt .No such file.*give a text file with a prompt a line",
        ),
    ],
    ids=str,
)
def test_numbers_out_of_range_write_nothing(config: GenerateConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(replace(config, **change))
    assert not config.out.exists()


def test_bad_values_are_refused_before_anything_is_written(config: GenerateConfig) -> None:
    with pytest.raises(UserError, match="--images-per-prompt got 0, allowed is 1 or more"):
        generate(replace(config, images_per_prompt=0))
    with pytest.raises(UserError, match="no LoRA weights at"):
        generate(replace(config, lora=config.prompts.parent))
    assert not config.out.exists()
