"""Reward-weighted regression learns, resumes as if never killed, and weighs as it says."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.rwr import RWRConfig, best_weights, softmax_weights, train, validate, weighted_loss
from mmrlhf.config import parse
from mmrlhf.errors import UserError
from tests.diffusion.helpers import timeless
from tests.small_flow_models import small_pipeline

CONFIGS = Path(__file__).parents[2] / "configs" / "rwr"


class Brightness:
    """`sign` times the mean of all pixels; raises at call `kill`."""

    def __init__(self, kill: int = 0, sign: int = 1) -> None:
        self.kill, self.sign, self.calls = kill, sign, 0

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.kill:
            raise KeyboardInterrupt
        return self.sign * images.mean(dim=(1, 2, 3))


@pytest.fixture
def config(model: Path, tmp_path: Path) -> RWRConfig:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n")
    return RWRConfig(
        model=str(model), prompts=prompts, reward="brightness", out=tmp_path / "run", epochs=2, samples_per_epoch=8,
        samples_per_prompt=4, sample_batch_size=8, train_batch_size=4, num_steps=3, guidance_scale=1.0, lora_rank=2,
        learning_rate=1e-2, temperature=0.01, kl_samples=2, images_every=0, device="cpu",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("top", [0, 2])
def test_it_learns_what_the_reward_asks_for(config: RWRConfig, tmp_path: Path, top: int) -> None:
    """Brighter pictures for their brightness, darker ones for its opposite, of a model that can draw."""
    config = replace(
        config, model="tiny-sd", epochs=4, samples_per_epoch=32, samples_per_prompt=16, sample_batch_size=32, eta=1.0,
        train_batch_size=32, inner_epochs=8, num_steps=5, lora_rank=8, learning_rate=3e-3, top=top, temperature=0.03,
    )  # fmt: skip
    up = train(config, reward=Brightness()).metrics
    down = train(replace(config, out=tmp_path / "down"), reward=Brightness(sign=-1)).metrics
    assert up[-1]["reward_mean"] - up[0]["reward_mean"] > 0.3 * up[0]["reward_std"]
    assert down[-1]["reward_mean"] - down[0]["reward_mean"] > 0.3 * up[0]["reward_std"]
    assert up[0]["kl"] == 0 < up[-1]["kl"]


def test_killed_and_resumed_is_never_killed(config: RWRConfig, tmp_path: Path) -> None:
    whole = train(config, reward=Brightness())
    again = replace(config, out=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        train(again, reward=Brightness(kill=2))
    assert timeless(train(replace(again, resume=True), reward=Brightness()).metrics) == timeless(whole.metrics)
    one, two = (torch.load(out / "checkpoint.pt", weights_only=True)["policy"] for out in (config.out, again.out))
    assert all(weight.equal(two[name]) for name, weight in one.items())


def test_weights() -> None:
    rewards = torch.tensor([0.0, float("nan"), 2.0, 1.0, 1.0])
    e = torch.tensor([0.0, 2.0, 1.0, 1.0]).div(0.5).exp()
    expected = 4 * e / e.sum()
    found = softmax_weights(rewards, 0.5)
    torch.testing.assert_close(found[[0, 2, 3, 4]], expected)
    assert found[1] == 0
    assert best_weights(rewards, ["a", "a", "b", "b", "b"], 1).tolist() == [1, 0, 1, 0, 0]
    assert best_weights(rewards, ["b"] * 5, 2).tolist() == [0, 0, 1, 1, 0]  # of equals the first


def test_loss_in_closed_form() -> None:
    loss, figures = weighted_loss(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.5]))
    assert loss.item() == 1.75 and figures == {"loss": 1.75, "denoising_error": 2.0}


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
def test_every_family(config: RWRConfig, tmp_path: Path, name: str) -> None:
    small_pipeline(name, tmp_path / name)
    config = replace(config, model=str(tmp_path / name), eta=0.0, top=1, size=64)
    line = train(config, reward=Brightness()).metrics[1]
    assert {"epoch", "samples", "seconds", "kl", "loss", "reward_mean"} <= line.keys() and line["kl"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "--temperature got 0.0, allowed is above 0"),
        ({"top": 5}, "--top got 5, allowed is 0 up to --samples-per-prompt 4"),
        ({"inner_epochs": 0}, "--inner-epochs got 0, allowed is 1 or more"),
    ],
)
def test_bad_values(config: RWRConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(replace(config, **change), reward=Brightness())
    assert not config.out.exists()


def test_the_shipped_config_is_valid() -> None:
    given = ["--prompts", "prompts.txt", "--reward", "brightness", "--out", "run"]
    validate(parse(RWRConfig, ["--config", str(CONFIGS / "tiny-sd.yaml"), *given], "mmrlhf diffusion rwr"))
