"""Diffusion-DPO learns preferences that hold for unseen prompts, resumes as if never killed, and fits every family."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion import preference_training
from diffusion.dpo import DPOConfig, batch_loss, train, validate
from diffusion.noise import gaussian
from diffusion.policy import DiffusionPolicy
from diffusion.preference_data import EncodedPairs
from diffusion.training import load_policy
from mmrlhf.config import parse
from mmrlhf.data import Pair, read_pairs, write_pairs
from mmrlhf.errors import UserError
from mmrlhf.images import content_hash
from mmrlhf.seeding import seeded
from mmrlhf.store import Preference, Store
from tests.diffusion.helpers import timeless, trained_weights
from tests.diffusion.test_policy import disturb
from tests.diffusion.test_preference_data import bright_and_dark, faithful
from tests.small_flow_models import small_pipeline
from tests.small_models import small_stable_diffusion

CONFIGS = Path(__file__).parents[2] / "configs" / "dpo"


@pytest.fixture
def config(model: Path, tmp_path: Path) -> DPOConfig:
    return DPOConfig(
        str(model), tmp_path / "run", data=bright_and_dark(tmp_path, 4), epochs=2, train_batch_size=2, num_steps=2,
        guidance_scale=1.0, lora_rank=2, learning_rate=1e-3, validation=0.3, kl_samples=1, images_every=0, device="cpu",
    )  # fmt: skip


def test_it_learns_what_is_preferred_for_prompts_it_never_saw(
    config: DPOConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dark over bright: on held-out pairs, and in what the policy then draws from the same noise."""
    faithful(monkeypatch)
    small_stable_diffusion(tmp_path / "v", prediction_type="v_prediction")
    turned = [replace(pair, label_0=1 - pair.label_0) for pair in read_pairs(bright_and_dark(tmp_path, 8))]
    write_pairs(turned, tmp_path / "turned.jsonl")
    config = replace(
        config, model=str(tmp_path / "v"), data=tmp_path / "turned.jsonl", lora_rank=4, lora_targets="all",
        learning_rate=3e-3, beta=100.0, train_batch_size=6, validation=0.25, save_every=2,
    )  # fmt: skip
    first, last = train(config).metrics
    assert last["validation_implicit_accuracy"] == 1 == last["implicit_accuracy"]
    assert last["validation_implicit_margin"] > 2 * first["validation_implicit_margin"] > 0
    assert last["loss"] < 0.1 < first["loss"] and 0 < first["kl"] < last["kl"]
    policy = DiffusionPolicy.load(config.model, lora=config.out, num_steps=2, guidance_scale=1.0, device="cpu")
    after = policy.sample(["a cat 99"] * 8, seeded(3)).images.mean(dim=(1, 2, 3))
    with policy.reference():
        before = policy.sample(["a cat 99"] * 8, seeded(3)).images.mean(dim=(1, 2, 3))
    assert (after < before).all()


def test_killed_and_resumed_is_never_killed(config: DPOConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(config)
    wanted = {"epoch", "samples", "seconds", "kl", "loss", "implicit_accuracy", "implicit_margin", "ties"}
    assert wanted <= whole.metrics[0].keys() and whole.metrics[0]["samples"] == 3
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert lines == whole.metrics
    again, calls = replace(config, out=tmp_path / "again"), []

    def kill(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return batch_loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("diffusion.dpo.batch_loss", kill)
        with pytest.raises(KeyboardInterrupt):
            train(again)
    assert len((again.out / "metrics.jsonl").read_text().splitlines()) == 1
    assert timeless(train(replace(again, resume=True)).metrics) == timeless(whole.metrics)
    ended = trained_weights(again.out)
    assert all(weight.equal(ended[name]) for name, weight in trained_weights(config.out).items())


def test_winner_and_loser_get_the_same_time_and_noise(config: DPOConfig) -> None:
    """The loss of a batch by calls of the UNet one by one, against the paper's formula."""
    policy = load_policy(config)
    disturb(policy)
    generator = seeded(0)
    winners, losers, noise = (gaussian((2, *policy.latent_shape), generator, policy.device) for _ in range(3))
    times, prompts = policy.forward.draw(2, generator), ["a cat", "red"]
    data = EncodedPairs(prompts, torch.zeros_like(winners), losers, torch.ones(2))
    loss, _ = batch_loss(policy, data, 50.0, torch.arange(2), winners, noise, times, policy.embed(prompts))
    alphas = policy.pipeline.scheduler.alphas_cumprod
    margins = []
    for row, time in enumerate(times.long()):
        gaps = []
        for clean in (winners[row], losers[row]):
            noised = alphas[time].sqrt() * clean + (1 - alphas[time]).sqrt() * noise[row]
            arguments = (noised.unsqueeze(0), time, policy.embed(prompts[row : row + 1])["text"])
            with torch.no_grad():
                now = policy.pipeline.unet(*arguments).sample[0]
                with policy.reference():
                    then = policy.pipeline.unet(*arguments).sample[0]
            gaps.append((noise[row] - now).square().mean() - (noise[row] - then).square().mean())
        margins.append(-0.5 * 50.0 * (gaps[0] - gaps[1]))
    expected = -torch.nn.functional.logsigmoid(torch.stack(margins)).mean()
    torch.testing.assert_close(loss.detach(), expected, atol=1e-5, rtol=1e-4)
    loss.backward()
    assert sum(float(weight.grad.abs().sum()) for weight in policy.parameters() if weight.grad is not None) > 0


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
def test_every_family(config: DPOConfig, tmp_path: Path, name: str) -> None:
    """Without validation: then all prompts are trained on."""
    small_pipeline(name, tmp_path / name)
    config = replace(config, model=str(tmp_path / name), epochs=1, size=64, guidance_scale=3.0, validation=0.0)
    line = train(config).metrics[0]
    assert line["kl"] > 0 and line["implicit_margin"] != 0 and line["samples"] == 4
    assert not any(key.startswith("validation") for key in line)


def test_the_answers_in_a_store(config: DPOConfig, tmp_path: Path) -> None:
    """With another answer in it, it is another run."""
    url = str(tmp_path / "s.db")
    first, second, *_ = read_pairs(Path(str(config.data)))
    add_answers(url, [first, second, replace(second, label_0=0.5)])
    config = replace(config, data=None, store=url, epochs=1)
    line = train(config).metrics[0]
    assert line["samples"] == 1 and line["ties"] == 1 and "validation_loss" in line
    add_answers(url, [replace(first, label_0=0.3)])
    with pytest.raises(UserError, match="other settings .store_sha256"):
        train(replace(config, resume=True))


def add_answers(url: str, pairs: Sequence[Pair]) -> None:
    """As annotators of their own."""
    store = Store(url)
    for pair in pairs:
        names = tuple(content_hash(path.read_bytes()) for path in (pair.image_0, pair.image_1))
        shown = (names[0], names[1])
        store.add_items(dict(zip(shown, ((path, pair.prompt) for path in (pair.image_0, pair.image_1)), strict=True)))
        store.add(Preference(pair.prompt, shown, pair.label_0, f"ann{pair.label_0}", "human", shown))
    store.close()


def test_a_kl_budget_takes_the_epoch_back(config: DPOConfig) -> None:
    """What is then measured is of the weights that were put back: here the start."""
    result = train(replace(config, kl_budget=1e-9))
    (line,) = result.metrics
    assert "over the budget" in result.stopped and line["updates"] == 2
    assert line["kl"] == 0 == line["validation_implicit_margin"] and line["validation_implicit_accuracy"] == 0.5
    start = load_policy(config).state_dict()
    assert all(weight.equal(start[name]) for name, weight in trained_weights(config.out).items())


def test_a_broken_image_leaves_no_folder_and_a_used_folder_is_refused_first(
    config: DPOConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.out.mkdir()
    (config.out / "notes.txt").write_text("of somebody")

    def unwanted(*_: Any) -> Any:
        raise AssertionError("nothing may be encoded")

    with monkeypatch.context() as patch:
        patch.setattr(preference_training, "encode_once", unwanted)
        with pytest.raises(UserError, match="already holds files: .*--resume"):
            train(config)
    (config.out.parent / "dark3.png").write_bytes(b"no image")
    fresh = replace(config, out=config.out.with_name("fresh"))
    with pytest.raises(UserError, match="dark3.png is not a readable image"):
        train(fresh)
    assert not fresh.out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": None}, "got neither of --data and --store: give one of them"),
        ({"reward": "brightness"}, "--method diffusion-dpo got --reward and --data, allowed is --data or --store"),
        ({"method": "d3po"}, "--method d3po got --data, allowed are --prompts and --reward"),
        ({"method": "d3po", "data": None}, "--method d3po got neither --prompts nor --reward, allowed are"),
        (
            {"method": "d3po", "data": None, "prompts": Path("p.txt"), "reward": "brightness", "eta": 0.0},
            "--eta got 0.0, allowed is above 0 with --method d3po",
        ),
        ({"pairs_per_epoch": 0}, "--pairs-per-epoch got 0, allowed is 1 or more"),
    ],
)
def test_bad_values(config: DPOConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(replace(config, **change))
    assert not config.out.exists()


@pytest.mark.parametrize("name", ["tiny-sd", "sd15", "sdxl", "sd3", "flux"])
def test_the_shipped_configs_are_valid(name: str) -> None:
    def parsed(given: Sequence[str]) -> DPOConfig:
        arguments = ["--config", str(CONFIGS / f"{name}.yaml"), *given, "--out", "run"]
        return parse(DPOConfig, arguments, "mmrlhf diffusion dpo")

    validate(parsed(["--data", "pairs.jsonl"]))
    validate(parsed(["--store", "sqlite:///ratings.sqlite", "--source", "human", "--criterion", ""]))
    validate(parsed(["--method", "d3po", "--prompts", "prompts.txt", "--reward", "brightness"]))
