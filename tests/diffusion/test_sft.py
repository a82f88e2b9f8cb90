"""Fine-tuning on given samples learns them, resumes as if never killed, and takes winners only."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.denoising import denoising_errors
from diffusion.noise import gaussian
from diffusion.policy import DiffusionPolicy
from diffusion.sft import SFTConfig, encode_files, plain_loss, read_samples, train, validate
from diffusion.training import load_policy
from mmrlhf.config import parse
from mmrlhf.errors import UserError
from mmrlhf.images import save_image
from mmrlhf.seeding import seeded
from tests.diffusion.helpers import timeless
from tests.small_flow_models import small_pipeline

CONFIGS = Path(__file__).parents[2] / "configs" / "sft"


@pytest.fixture
def config(model: Path, tmp_path: Path) -> SFTConfig:
    for name, level in (("bright", 0.9), ("dark", 0.1)):
        save_image(torch.full((3, 64, 64), level), tmp_path / f"{name}.png")
    rows = [("a cat", "bright", "dark", 1.0), ("a dog", "dark", "bright", 0.2), ("a red cat", "dark", "bright", 0.5)]
    lines = [
        {"prompt": p, "image_0": f"{a}.png", "image_1": f"{b}.png", "label_0": w, "label_1": 1 - w}
        for p, a, b, w in rows
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return SFTConfig(
        model=str(model), data=tmp_path / "pairs.jsonl", out=tmp_path / "run", epochs=3, train_batch_size=2, num_steps=3,
        guidance_scale=1.0, lora_rank=2, learning_rate=1e-2, kl_samples=2, images_every=0, device="cpu",
    )  # fmt: skip


@pytest.mark.slow
def test_it_learns_the_samples(config: SFTConfig) -> None:
    """Errors at noise and times that training did not draw."""
    train(replace(config, epochs=60, save_every=60))
    policy = DiffusionPolicy.load(config.model, lora=config.out, device="cpu")
    items = read_samples(config.data) * 16
    clean, conditions = encode_files(policy, [item.image for item in items], 8), policy.embed([i.prompt for i in items])
    generator = seeded(99)
    noise, times = gaussian(clean.shape, generator, policy.device), policy.forward.draw(len(items), generator)
    with torch.no_grad():
        after = denoising_errors(policy, clean, noise, times, conditions).mean()
        with policy.reference():
            before = denoising_errors(policy, clean, noise, times, conditions).mean()
    assert after < 0.9 * before


def test_killed_and_resumed_is_never_killed(config: SFTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(config)
    assert {"epoch", "samples", "seconds", "kl", "loss"} <= whole.metrics[0].keys()
    again, calls = replace(config, out=tmp_path / "again"), []

    def kill(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain_loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("diffusion.sft.plain_loss", kill)
        with pytest.raises(KeyboardInterrupt):
            train(again)
    assert timeless(train(replace(again, resume=True)).metrics) == timeless(whole.metrics)
    one, two = (torch.load(out / "checkpoint.pt", weights_only=True)["policy"] for out in (config.out, again.out))
    assert all(weight.equal(two[name]) for name, weight in one.items())


def test_winners_count_and_ties_do_not(config: SFTConfig, tmp_path: Path) -> None:
    found = [(item.prompt, item.image.name) for item in read_samples(config.data)]
    assert found == [("a cat", "bright.png"), ("a dog", "bright.png")]
    items = tmp_path / "items.jsonl"
    items.write_text(json.dumps({"prompt": "a cat", "image": "dark.png"}) + "\n")
    assert [item.image.name for item in read_samples(items)] == ["dark.png"]


def test_each_different_image_is_encoded_once(config: SFTConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, seen = load_policy(config), list[int]()
    encode = policy.encode_images

    def watched(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return encode(images)

    monkeypatch.setattr(policy, "encode_images", watched)
    folder = config.data.parent
    clean = encode_files(policy, [folder / "bright.png", folder / "dark.png", folder / "bright.png"], 8)
    assert seen == [2] and clean[0].equal(clean[2]) and not clean[0].equal(clean[1])


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
def test_every_family(config: SFTConfig, tmp_path: Path, name: str) -> None:
    small_pipeline(name, tmp_path / name)
    assert train(replace(config, model=str(tmp_path / name), epochs=2, size=64)).metrics[1]["kl"] > 0


def test_changed_images_are_another_run(config: SFTConfig) -> None:
    train(replace(config, epochs=1))
    save_image(torch.zeros(3, 64, 64), config.data.parent / "bright.png")
    with pytest.raises(UserError, match="other settings .data_sha256"):
        train(replace(config, resume=True))


def test_bad_input(config: SFTConfig, tmp_path: Path) -> None:
    ties = tmp_path / "ties.jsonl"
    ties.write_text(config.data.read_text().splitlines()[2] + "\n")
    with pytest.raises(UserError, match="no image to train on: give items, or at least one pair that is not a tie"):
        train(replace(config, data=ties))
    with pytest.raises(UserError, match="cannot read .*missing.jsonl"):
        train(replace(config, data=tmp_path / "missing.jsonl"))
    with pytest.raises(UserError, match="--epochs got 0, allowed is 1 or more"):
        train(replace(config, epochs=0))
    assert not config.out.exists()


def test_the_shipped_config_is_valid() -> None:
    given = ["--data", "pairs.jsonl", "--out", "run"]
    validate(parse(SFTConfig, ["--config", str(CONFIGS / "tiny-sd.yaml"), *given], "mmrlhf diffusion sft"))
