"""Diffusion-KTO learns what is liked, resumes as if never killed, and fits every family."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.denoising import denoising_errors, reference_errors
from diffusion.kto import KTOConfig, batch_loss, train, validate
from diffusion.noise import gaussian
from diffusion.training import load_policy
from mmrlhf.config import parse
from mmrlhf.data import read_pairs
from mmrlhf.errors import UserError
from mmrlhf.outcomes import Rating, write_outcomes
from mmrlhf.seeding import seeded
from tests.diffusion.helpers import timeless, trained_weights
from tests.diffusion.test_policy import disturb
from tests.diffusion.test_preference_data import bright_and_dark, faithful
from tests.small_flow_models import small_pipeline

CONFIGS = Path(__file__).parents[2] / "configs" / "kto"


@pytest.fixture
def config(model: Path, tmp_path: Path) -> KTOConfig:
    return KTOConfig(
        str(model), tmp_path / "run", data=bright_and_dark(tmp_path, 4), epochs=2, train_batch_size=6, num_steps=2,
        guidance_scale=1.0, lora_rank=2, learning_rate=1e-3, validation=0.3, kl_samples=1, images_every=0, device="cpu",
    )  # fmt: skip


def test_it_learns_from_ratings_what_is_liked_for_prompts_it_never_saw(
    config: KTOConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pairs: of some prompts only a bright image was liked, of others only a dark one disliked."""
    faithful(monkeypatch)
    pairs = read_pairs(bright_and_dark(tmp_path, 16))
    ratings = [Rating(pair.prompt, tmp_path / f"{('dark', 'bright')[i % 2]}{i}.png", 1 + i % 2, 2)
               for i, pair in enumerate(pairs)]  # fmt: skip
    write_outcomes(ratings, tmp_path / "ratings.jsonl")
    config = replace(
        config, data=tmp_path / "ratings.jsonl", lora_rank=4, lora_targets="all", save_every=9, epochs=3, train_batch_size=11
    )  # fmt: skip
    first, *_, last = train(config).metrics
    assert first["samples"] == 11 and last["validation_implicit_accuracy"] == 1
    assert last["validation_implicit_margin"] > 2 * first["validation_implicit_margin"] > 0
    assert last["loss"] < 0.25 and first["loss"] == pytest.approx(0.5) and 0 < first["kl"] < last["kl"]


def test_killed_and_resumed_is_never_killed(config: KTOConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All weights, of which the start is remembered."""
    config = replace(config, lora_rank=0, learning_rate=1e-5, validation=0.0)
    whole = train(config)
    wanted = {"epoch", "samples", "seconds", "kl", "loss", "implicit_accuracy", "implicit_margin", "left_out"}
    assert wanted <= whole.metrics[0].keys() and whole.metrics[0]["samples"] == 8
    again, calls = replace(config, out=tmp_path / "again"), []

    def kill(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # two batches an epoch
            raise KeyboardInterrupt
        return batch_loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("diffusion.kto.batch_loss", kill)
        with pytest.raises(KeyboardInterrupt):
            train(again)
    assert timeless(train(replace(again, resume=True)).metrics) == timeless(whole.metrics)
    ended = trained_weights(again.out)
    assert all(weight.equal(ended[name]) for name, weight in trained_weights(config.out).items())


def test_a_batch_is_the_formula_of_the_paper(config: KTOConfig) -> None:
    """1 − σ(w(r − Q)) with r = −½β(policy's error − start's), Q the mean r."""
    policy = load_policy(config)
    disturb(policy)
    generator = seeded(0)
    clean, noise = (gaussian((3, *policy.latent_shape), generator, policy.device) for _ in range(2))
    arguments = (clean, noise, policy.forward.draw(3, generator), policy.embed(["a cat", "red", "a dog"]))
    with torch.no_grad():
        rewards = -25.0 * (denoising_errors(policy, *arguments) - reference_errors(policy, *arguments))
    liked = torch.tensor([0.0, -1.0, 1.0, 1.0])
    expected = (1 - (liked[1:] * (rewards - rewards.mean().clamp_min(0))).sigmoid()).mean()
    loss, _ = batch_loss(policy, liked, 50.0, torch.arange(1, 4), *arguments)
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    assert sum(float(weight.grad.abs().sum()) for weight in policy.parameters() if weight.grad is not None) > 0


def test_a_batch_in_parts_is_compared_with_the_mean_of_all(config: KTOConfig, tmp_path: Path) -> None:
    """However many images go through the network at once, to within rounding."""
    config = replace(config, beta=1e4, validation=0.0)
    whole = train(config)
    parts = train(replace(config, out=tmp_path / "parts", micro_batch_size=1))
    for mine, theirs in zip(timeless(whole.metrics), timeless(parts.metrics), strict=True):
        assert mine.pop("problems") == theirs.pop("problems")
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-3)
    assert whole.metrics[-1]["reference_point"] > 0.1
    ended = trained_weights(parts.out)
    for name, weight in trained_weights(config.out).items():
        torch.testing.assert_close(weight, ended[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
def test_every_family(config: KTOConfig, tmp_path: Path, name: str) -> None:
    small_pipeline(name, tmp_path / name)
    line = train(replace(config, model=str(tmp_path / name), epochs=1, size=64, guidance_scale=3.0)).metrics[0]
    assert line["kl"] > 0 and line["validation_implicit_margin"] != 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": None}, "got neither of --data and --store: give one of them"),
        ({"train_batch_size": 1}, "--train-batch-size got 1, allowed is 2 or more: rewards are compared with"),
        ({"beta": -1.0}, "--beta got -1.0, allowed is above 0"),
    ],
)
def test_bad_values(config: KTOConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(replace(config, **change))
    assert not config.out.exists()


@pytest.mark.parametrize("name", ["tiny-sd", "sd15"])
def test_the_shipped_configs_are_valid(name: str) -> None:
    given = ["--data", "pairs.jsonl", "--out", "run"]
    validate(parse(KTOConfig, ["--config", str(CONFIGS / f"{name}.yaml"), *given], "mmrlhf diffusion kto"))
