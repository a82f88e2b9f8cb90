"""DiffusionNFT learns, resumes as if never killed, and computes what the paper says, on every family."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.nft import NFTConfig, OldPolicy, nft_loss, optimality_of, train, validate
from diffusion.training import load_policy
from mmrlhf.config import parse
from mmrlhf.errors import UserError
from mmrlhf.seeding import seeded
from tests.diffusion.helpers import timeless, trained_weights
from tests.small_flow_models import small_pipeline

CONFIGS = Path(__file__).parents[2] / "configs" / "nft"


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
def config(model: Path, tmp_path: Path) -> NFTConfig:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n")
    return NFTConfig(
        model=str(model), prompts=prompts, reward="brightness", out=tmp_path / "run", epochs=3, samples_per_epoch=8,
        samples_per_prompt=4, sample_batch_size=8, train_batch_size=4, num_steps=3, lora_rank=2, learning_rate=1e-2,
        old_decay_growth=0.2, kl_samples=2, images_every=0, device="cpu",
    )  # fmt: skip


@pytest.mark.slow
def test_it_learns_what_the_reward_asks_for(config: NFTConfig, tmp_path: Path) -> None:
    """Brighter pictures for their brightness, darker ones for its opposite, of a model that can draw."""
    config = replace(
        config, model="tiny-sd", epochs=4, samples_per_epoch=32, samples_per_prompt=16, sample_batch_size=32, eta=1.0,
        train_batch_size=32, inner_epochs=8, num_steps=5, lora_rank=8, learning_rate=3e-3,
    )  # fmt: skip
    up = train(config, reward=Brightness()).metrics
    down = train(replace(config, out=tmp_path / "down"), reward=Brightness(sign=-1)).metrics
    assert up[-1]["reward_mean"] - up[0]["reward_mean"] > 0.3 * up[0]["reward_std"]
    assert down[-1]["reward_mean"] - down[0]["reward_mean"] > 0.3 * up[0]["reward_std"]
    assert up[0]["kl"] == 0 < up[-1]["kl"]


def test_the_kl_is_that_of_steps_with_noise(config: NFTConfig) -> None:
    """Without any in its own sampling: as of a policy with eta 1, on paths of its own."""
    config.prompts.write_text("a cat\n")
    assert config.eta == 0
    once = train(replace(config, epochs=1), reward=Brightness())
    policy = load_policy(replace(config, eta=1.0))
    policy.load_state_dict(trained_weights(once.out))
    expected = policy.kl_to_reference(policy.sample(["a cat"] * 2, seeded(config.seed, 1, 1)))
    again = train(replace(config, epochs=2, resume=True), reward=Brightness())
    assert 0 < again.metrics[1]["kl"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("rank", [0, 2])
def test_killed_and_resumed_is_never_killed(config: NFTConfig, tmp_path: Path, rank: int) -> None:
    config = replace(config, lora_rank=rank, learning_rate=1e-2 if rank else 1e-4)
    whole = train(config, reward=Brightness())
    again = replace(config, out=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        train(again, reward=Brightness(kill=3))
    resumed = train(replace(again, resume=True), reward=Brightness())
    assert timeless(resumed.metrics) == timeless(whole.metrics)
    one, two = (torch.load(out / "checkpoint.pt", weights_only=True) for out in (config.out, again.out))
    for part in ("policy", "old"):
        assert all(weight.equal(two[part][name]) for name, weight in one[part].items())
    assert any(not weight.equal(one["old"][name]) for name, weight in one["policy"].items())


def test_loss_in_closed_form() -> None:
    output, old, target = (torch.full((2, 1, 2, 2), value) for value in (3.0, 1.0, 2.0))
    loss, figures = nft_loss(output, old, target, torch.tensor([1.0, 0.0]), 0.5)
    assert loss.item() == pytest.approx((0 + 4) / 2)  # v⁺ = 2 hits the target, v⁻ = 0 is 2 away
    assert figures == {"loss": pytest.approx(2.0), "output_change": 4.0}


def test_gradient_at_the_old_policy_is_that_of_weights_2p_minus_1() -> None:
    """There, of p‖v⁺−v‖² + (1−p)‖v⁻−v‖², 2β(2p−1)(v_old − v)/d remains: by hand, against autograd."""
    generator = torch.Generator().manual_seed(0)
    old, target = torch.randn(2, 3, 4, 2, 2, generator=generator).double()
    p = torch.tensor([0.1, 0.5, 0.9]).double()
    output = old.clone().requires_grad_()
    nft_loss(output, old, target, p, 0.7)[0].backward()
    expected = 2 * 0.7 * (2 * p - 1).view(-1, 1, 1, 1) * (old - target) / (16 * 3)
    torch.testing.assert_close(output.grad, expected)


def test_optimality() -> None:
    rewards = torch.tensor([0.0, 2.0, 10.0, float("nan"), 12.0])
    spread = torch.tensor([0.0, 2.0, 10.0, 12.0]).std(correction=0).item()
    found = optimality_of(rewards, ["a", "a", "b", "b", "b"], 1.0)
    half = 0.5 / spread
    torch.testing.assert_close(found, torch.tensor([0.5 - half, 0.5 + half, 0.5 - half, 0.5, 0.5 + half]))
    assert optimality_of(rewards, ["a", "a", "b", "b", "b"], 0.01).tolist() == [0, 1, 0, 0.5, 1]
    assert optimality_of(torch.ones(3), ["a"] * 3, 1.0).tolist() == [0.5] * 3


def test_the_old_policy_follows_and_is_put_in_place(config: NFTConfig) -> None:
    policy = load_policy(config)
    old = OldPolicy(policy)
    start = {name: weight.clone() for name, weight in policy.state_dict().items()}
    for weight in policy.parameters():
        weight.data += 1
    with old.in_place():
        assert all(weight.equal(start[name]) for name, weight in policy.state_dict().items())
    assert all(weight.equal(start[name] + 1) for name, weight in policy.state_dict().items())
    old.follow(0.25)
    for name, begun in start.items():
        torch.testing.assert_close(old.weights[name], begun + 0.75)


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
def test_every_family(config: NFTConfig, tmp_path: Path, name: str) -> None:
    small_pipeline(name, tmp_path / name)
    line = train(replace(config, model=str(tmp_path / name), epochs=2, size=64), reward=Brightness()).metrics[1]
    assert {"epoch", "samples", "seconds", "kl", "loss", "reward_mean"} <= line.keys() and line["kl"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strength": 0.0}, "--strength got 0.0, allowed is above 0"),
        ({"old_decay": 1.0}, "--old-decay got 1.0, allowed is 0 up to, but not, 1"),
        ({"samples_per_prompt": 1}, "--samples-per-prompt got 1, allowed is 2 or more"),
        ({"reward_scale": -1.0}, "--reward-scale got -1.0, allowed is above 0"),
    ],
)
def test_bad_values(config: NFTConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(replace(config, **change), reward=Brightness())
    assert not config.out.exists()


@pytest.mark.parametrize("name", ["tiny-sd", "sd3"])
def test_the_shipped_configs_are_valid(name: str) -> None:
    given = ["--prompts", "prompts.txt", "--reward", "brightness", "--out", "run"]
    validate(parse(NFTConfig, ["--config", str(CONFIGS / f"{name}.yaml"), *given], "mmrlhf diffusion nft"))
