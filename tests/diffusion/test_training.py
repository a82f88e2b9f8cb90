"""What every run does beside its method, tried with reward-weighted regression, which is the least of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusion import ddpo, dpo, draft, grpo, nft, rwr, spo
from diffusion.ddpo_config import DDPOConfig
from diffusion.dpo import DPOConfig
from diffusion.draft_config import DRaFTConfig
from diffusion.grpo_config import GRPOConfig
from diffusion.loading import LORA_FILE
from diffusion.nft import NFTConfig
from diffusion.policy import DiffusionPolicy
from diffusion.rwr import RWRConfig, train
from diffusion.spo_config import SPOConfig
from diffusion.training import load_reward
from mmrlhf import distributed
from mmrlhf.errors import UserError


@pytest.fixture
def config(model: Path, tmp_path: Path) -> RWRConfig:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    return RWRConfig(
        model=str(model), prompts=prompts, reward="brightness", out=tmp_path / "run", epochs=3, samples_per_epoch=4,
        samples_per_prompt=4, train_batch_size=2, num_steps=2, guidance_scale=1.0, lora_rank=2, learning_rate=1e-2,
        kl_samples=1, images_every=0, embedder="", device="cpu",
    )  # fmt: skip


def brightness(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    return images.mean(dim=(1, 2, 3))


def written(config: RWRConfig) -> dict[str, torch.Tensor]:
    """The weights in the LoRA file."""
    policy = DiffusionPolicy.load(config.model, lora=config.out, device="cpu")
    named = policy.network.named_parameters()
    return {name.replace("default_0", "default"): weight for name, weight in named if "lora" in name}


def trained(config: RWRConfig) -> dict[str, torch.Tensor]:
    """Those that training goes on from."""
    return torch.load(config.out / "checkpoint.pt", weights_only=True)["policy"]


def test_the_average_is_what_is_written_and_not_what_is_trained(config: RWRConfig, tmp_path: Path) -> None:
    train(config, reward=brightness)
    averaged = replace(config, ema_decay=0.9, out=tmp_path / "averaged")
    train(averaged, reward=brightness)
    same, other = trained(config), trained(averaged)
    assert all(weight.equal(other[name]) for name, weight in same.items())
    assert all(weight.equal(other[name]) for name, weight in written(config).items())
    assert not all(weight.equal(other[name]) for name, weight in written(averaged).items())


def test_the_average_resumes_as_if_never_killed(config: RWRConfig, tmp_path: Path) -> None:
    config = replace(config, ema_decay=0.9)
    again = replace(config, out=tmp_path / "again", epochs=2)
    train(config, reward=brightness)
    train(again, reward=brightness)
    train(replace(again, epochs=3, resume=True), reward=brightness)
    one, two = written(config), written(again)
    assert all(weight.equal(two[name]) for name, weight in one.items())


def test_a_tracker_gets_every_epoch_and_the_pictures(config: RWRConfig, tmp_path: Path) -> None:
    result = train(replace(config, trackers="tensorboard", images_every=2), reward=brightness)
    read = EventAccumulator(str(config.out / "mmrlhf"))
    read.Reload()
    assert [event.step for event in read.Scalars("reward_mean")] == [0, 1, 2]
    wanted = [line["reward_mean"] for line in result.metrics]
    assert [event.value for event in read.Scalars("reward_mean")] == pytest.approx(wanted)
    assert {event.step for name in read.Tags()["images"] for event in read.Images(name)} == {0, 2, 3}
    with pytest.raises(UserError, match="--trackers got 'paper'"):
        train(replace(config, trackers="paper", out=tmp_path / "none"), reward=brightness)
    assert not (tmp_path / "none").exists()


def test_long_prompts_are_told_once(config: RWRConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config.prompts.write_text("a cat " * 100 + "\n")
    train(replace(config, epochs=2), reward=brightness)
    assert capsys.readouterr().err.count("longer than the") == 1


def test_other_ways_to_compute_give_the_same(config: RWRConfig) -> None:
    """Memory format and attention backend change no picture."""
    plain = DiffusionPolicy.load(config.model, num_steps=2, device="cpu")
    other = DiffusionPolicy.load(config.model, num_steps=2, device="cpu", channels_last=True, attention="native")
    convolution = next(weight for weight in other.network.parameters() if weight.ndim == 4 and weight.shape[-1] > 1)
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    images: list[Any] = [policy.sample(["a cat"], torch.Generator().manual_seed(0)).images for policy in (plain, other)]
    torch.testing.assert_close(images[0], images[1], atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="--attention got 'none'.*leave it out, or give another"):
        DiffusionPolicy.load(config.model, attention="none", device="cpu")


@pytest.mark.slow
def test_a_compiled_network_trains_and_is_written_as_ever(config: RWRConfig, tmp_path: Path) -> None:
    compiled = replace(config, compile=True, out=tmp_path / "compiled", epochs=1)
    train(replace(config, epochs=1), reward=brightness)
    train(compiled, reward=brightness)
    one, two = written(config), written(compiled)
    assert (compiled.out / LORA_FILE).exists()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=1e-3, rtol=0)


def rewarded(config: RWRConfig) -> list[tuple[Any, Any]]:
    """Each method that takes a reward, with a config of it whose reward is misspelt."""
    shared: dict[str, Any] = {"out": config.out, "prompts": config.prompts, "reward": "brightnes", "device": "cpu"}
    kinds = (DDPOConfig, GRPOConfig, NFTConfig, RWRConfig, SPOConfig, DRaFTConfig)
    methods = (ddpo, grpo, nft, rwr, spo, draft)
    made = [(method, kind(config.model, **shared)) for method, kind in zip(methods, kinds, strict=True)]
    return [*made, (dpo, DPOConfig(config.model, method="d3po", **shared))]


def test_a_misspelt_reward_leaves_no_folder(config: RWRConfig) -> None:
    """So that the command, mended, runs with the same --out."""
    for method, wrong in rewarded(config):
        with pytest.raises(UserError, match="reward 'brightnes' is neither a name nor a folder: allowed are"):
            method.train(wrong)
        assert not wrong.out.exists(), method.__name__


def test_a_misspelt_embedder_leaves_no_folder(config: RWRConfig) -> None:
    """And costs no epoch: it is loaded before the first."""
    for method, wrong in rewarded(config)[:4]:
        with pytest.raises(UserError, match="--embedder got 'tiny-clp'"):
            method.train(replace(wrong, embedder="tiny-clp", reward="brightness"))
        assert not wrong.out.exists(), method.__name__


def test_a_process_knows_its_gpu_before_the_reward_moves_there(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(distributed, "join", lambda: order.append("join"))

    def pick(name: str) -> torch.device:
        order.append("device")
        return torch.device("cpu")

    monkeypatch.setattr("diffusion.training.pick_device", pick)
    load_reward("tiny-clip", "auto")
    assert order == ["join", "device"]
