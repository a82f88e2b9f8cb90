"""Base against tuned: figures by hand, pairs from one noise, going on after a kill, files with categories, bad input."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diffusion.evaluation.drawing as drawing
from diffusion.evaluate import evaluate
from diffusion.evaluation.config import EvalConfig, names_of, spread
from diffusion.evaluation.figures import category_figures, diversity_figures, reward_figures, verdict
from diffusion.evaluation.page import largest
from diffusion.evaluation.prompt_files import CategorisedPrompt, read_categorised
from diffusion.generate import generate_images
from diffusion.policy import DiffusionPolicy
from mmrlhf.data import read_items
from mmrlhf.errors import UserError
from mmrlhf.images import load_image
from mmrlhf.rewards.rules.simple import Brightness
from mmrlhf.seeding import seeded
from tests.diffusion.test_policy import disturb, load
from tests.small_clip import small_clip
from tests.small_flow_models import small_pipeline
from tests.small_models import small_stable_diffusion

SHARED = Path(__file__).parents[3] / "shared" / "data" / "prompts"
PROMPTS = ["a cat", "a dog", "red", "a red cat", "a red dog", "cat dog"]


@pytest.fixture(scope="session")
def lora(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = load(model)
    disturb(policy, 0.3)
    return policy.save(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def config(model: Path, lora: Path, clip: Path, tmp_path: Path) -> EvalConfig:
    prompts = tmp_path / "prompts.tsv"
    kinds = ["one", "one", "one", "two", "two", "two"]
    lines = ["Prompt\tCategory", *(f"{prompt}\t{kind}" for prompt, kind in zip(PROMPTS, kinds, strict=True))]
    prompts.write_text("\n".join(lines) + "\n")
    return EvalConfig(
        model=str(model),
        prompts=prompts,
        rewards="brightness,redness",
        out=tmp_path / "out",
        lora=lora,
        num_steps=3,
        guidance_scale=1.0,
        kl_samples=4,
        embedder=str(clip),
        shown=2,
        device="cpu",
        batch_size=8,
    )


class Abstains:
    """Brightness that says nothing of prompts with a word in them."""

    differentiable = False

    def __init__(self, word: str) -> None:
        self.word = word

    def __call__(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
        silent = torch.tensor([self.word in prompt for prompt in prompts])
        return torch.where(silent, torch.nan, images.mean(dim=(1, 2, 3)))


def test_the_whole_folder(config: EvalConfig, capsys: pytest.CaptureFixture[str]) -> None:
    figures = evaluate(config)
    assert json.loads((config.out / "eval.json").read_text()) == json.loads(json.dumps(figures))
    assert "the tuned model wins by brightness" in capsys.readouterr().out

    tuned = DiffusionPolicy.load(config.model, lora=config.lora, num_steps=3, guidance_scale=1.0, device="cpu")
    after = generate_images(tuned, PROMPTS, seed=0, images_per_prompt=2)
    with tuned.reference():
        before = generate_images(tuned, PROMPTS, seed=0, images_per_prompt=2)
    rows = [json.loads(line) for line in (config.out / "scores.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [prompt for prompt in PROMPTS for _ in range(2)]
    for row, one, two in zip(rows, before, after, strict=True):
        for side, image in (("base", one), ("tuned", two)):
            torch.testing.assert_close(load_image(config.out / row[side]), image, atol=1 / 255, rtol=0)
        bright = Brightness()(torch.stack([one, two]), [""] * 2).tolist()
        assert row["scores"]["brightness"] == pytest.approx(bright, abs=1 / 255)

    gains = np.diff([row["scores"]["brightness"] for row in rows])[:, 0]
    found = figures["rewards"][0]
    assert (found["name"], found["n"], found["prompts"], figures["pairs"]) == ("brightness", 12, 6, 12)
    assert found["difference"] == pytest.approx(gains.mean())
    assert found["win_rate"] == pytest.approx((gains > 0).mean())
    assert found["difference_ci95"][0] <= found["difference"] <= found["difference_ci95"][1]
    assert [category["name"] for category in figures["categories"]] == ["one", "two"]
    assert figures["diversity"]["before"] > 0 and figures["same_noise"]

    chosen = [0, 3, 6, 9]  # spread over the 12 pictures
    rollout = tuned.sample([PROMPTS[place // 2] for place in chosen], [seeded(0, p // 2, p % 2) for p in chosen])
    assert figures["kl"]["nats"] == pytest.approx(float(tuned.kl_to_reference(rollout)), rel=1e-4)
    assert figures["kl"]["samples"] == 4 and figures["kl"]["nats"] > 0

    items = read_items(config.out / "items.jsonl")
    assert len(items) == 24 and items[12].image == config.out / "tuned" / "00000-00.png"
    page = (config.out / "eval.html").read_text()
    for text in ("by category", "largest gains", "data:image/jpeg", "nats", "redness: the pictures"):
        assert text.lower() in page.lower()


def test_a_killed_run_goes_on_and_gives_the_same(config: EvalConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(replace(config, out=config.out.with_name("whole")))
    real, calls = drawing.draw, []

    def dies(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(drawing, "draw", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config)
    assert not (config.out / "eval.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in config.out.glob("*/*.png")}
    assert len(kept) == 12  # the tuned side
    assert evaluate(config) == whole
    assert len(calls) == 5  # two batches more
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())

    monkeypatch.setattr(drawing, "draw", None)  # other rewards and fewer prompts need no new picture
    assert evaluate(replace(config, rewards="warmth", max_prompts=3))["pairs"] == 6
    with pytest.raises(UserError, match="other settings .seed; seed was 0, now 1"):
        evaluate(replace(config, seed=1))


def test_abstentions_and_a_single_picture(config: EvalConfig) -> None:
    settings = replace(config, images_per_prompt=1, eta=0.0)
    figures = evaluate(settings, rewards={"picky": Abstains("cat"), "silent": Abstains("")})
    picky, silent = figures["rewards"]
    assert (picky["n"], picky["abstained"], picky["difference_ci95"]) == (3, 3, None)
    assert (silent["n"], silent["win_rate"], silent["verdict"]) == (0, None, "")
    assert figures["diversity"] is None and figures["kl"] is None
    first = json.loads((config.out / "scores.jsonl").read_text().splitlines()[0])
    assert first["scores"] == {"picky": [None, None], "silent": [None, None]}


def test_another_base_and_itself(config: EvalConfig, model: Path, tmp_path: Path) -> None:
    """A model against itself ties everywhere; another base may be swapped in only into a fresh folder."""
    plain = replace(config, lora=None, base=str(model), max_prompts=5, images_per_prompt=1)
    same = evaluate(plain)
    assert same["rewards"][0]["win_rate"] == 0.5 and same["rewards"][0]["difference"] == 0
    assert same["rewards"][0]["ties"] == 5 and same["kl"] is None and same["same_noise"]
    small_stable_diffusion(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="other settings .*base_sha256"):
        evaluate(replace(plain, base=str(tmp_path / "other")))
    other = evaluate(replace(plain, base=str(tmp_path / "other"), out=tmp_path / "fresh"))
    assert other["rewards"][0]["ties"] == 0


def test_a_flow_model_against_one_of_another_class(config: EvalConfig, tmp_path: Path) -> None:
    small_pipeline("StableDiffusion3Pipeline", tmp_path / "sd3")
    settings = replace(
        config, base=str(tmp_path / "sd3"), lora=None, eta=0.7, max_prompts=2, images_per_prompt=1, num_steps=2
    )
    figures = evaluate(settings)
    assert figures["pairs"] == 2 and figures["rewards"][0]["difference_ci95"] is None
    latents = [DiffusionPolicy.load(name, device="cpu").latent_shape for name in (config.model, settings.base or "")]
    assert figures["same_noise"] == (latents[0] == latents[1])


def test_reward_figures_by_hand() -> None:
    before, after = np.array([0.0, 1, 2, 3, np.nan, 5]), np.array([1.0, 1, 1, 7, 9, 6])
    found = reward_figures(before, after, ["a", "b", "c", "d", "e", "f"], seed=0)
    assert (found["n"], found["abstained"], found["ties"]) == (5, 1, 1)
    assert (found["before"], found["after"], found["difference"]) == pytest.approx((2.2, 3.2, 1.0))
    assert found["win_rate"] == pytest.approx(3.5 / 5)


def test_intervals_are_over_prompts() -> None:
    """The same gains of 8 prompts, each five times: as sure as 8 pairs, not as 40."""
    gains = np.random.default_rng(0).normal(0.5, 1, 8)
    names = [f"prompt {number}" for number in range(8)]
    once = reward_figures(np.zeros(8), gains, names, seed=0)
    often = reward_figures(np.zeros(40), gains.repeat(5), [name for name in names for _ in range(5)], seed=0)
    for key in ("difference_ci95", "win_rate_ci95"):
        np.testing.assert_allclose(once[key], often[key], atol=1e-9)


def test_the_interval_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    units = [f"{number // 2}" for number in range(80)]
    hits = 0
    for trial in range(100):
        gains = generator.normal(0.3, 1, 40).repeat(2) + generator.normal(0, 0.5, 80)
        low, high = reward_figures(np.zeros(80), gains, units, seed=trial)["difference_ci95"]
        hits += low <= 0.3 <= high
    assert 87 <= hits <= 100


def test_verdicts() -> None:
    found = [verdict(interval) for interval in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (0.0, 0.1), None)]
    assert found == ["higher", "lower", "", "", ""]


def test_diversity_before_and_after() -> None:
    before = np.tile(np.eye(2), (6, 1))  # two orthogonal pictures a prompt
    after = np.ones((12, 2))  # all alike
    found = diversity_figures(before, after, [f"{number // 2}" for number in range(12)], seed=0)
    assert found is not None and found["verdict"] == "lower" and found["prompts"] == 6
    assert (found["before"], found["after"], found["difference"]) == pytest.approx((1, 0, -1))
    assert diversity_figures(before, after, [f"{number}" for number in range(12)], seed=0) is None


def test_categories_hold_their_own_rows() -> None:
    scores = {"r": (np.zeros(4), np.array([1.0, -1, 3, 3]))}
    found = category_figures(scores, list("abcd"), ["x", "y", "x", "y"], seed=0)
    assert [(entry["name"], entry["rewards"][0]["difference"]) for entry in found] == [("x", 2.0), ("y", 1.0)]
    assert category_figures(scores, list("abcd"), [""] * 4, seed=0) == []


def test_largest_gains_and_losses() -> None:
    pairs = [[0.0, 3.0], [0.0, -2.0], [None, 9.0], [0.0, 1.0], [1.0, 1.0], [0.0, -5.0]]
    rows = [{"scores": {"r": pair}} for pair in pairs]
    gains, losses = largest(rows, "r", 3)
    assert ([row["gain"] for row in gains], [row["gain"] for row in losses]) == ([3, 1], [-5, -2])
    assert largest(rows, "r", 0) == ([], [])


def test_names_of_rewards() -> None:
    assert names_of("redness, runs/a:pessimism=1,criterion=safety,tiny-clip") == [
        "redness", "runs/a:pessimism=1,criterion=safety", "tiny-clip",
    ]  # fmt: skip
    for text in ("", ",", "redness,redness"):
        with pytest.raises(UserError, match="--rewards got '.*', allowed are different rewards with commas"):
            names_of(text)


def test_prompts_are_spread_over_the_file() -> None:
    assert (spread(10, 4), spread(3, None), spread(3, 9)) == ([0, 2, 5, 7], [0, 1, 2], [0, 1, 2])


def test_files_of_prompts(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('Prompt\tCategory\tNote\na "red" cat\tAnimals\tx\n\nlife\t\t\n')
    assert read_categorised(tmp_path / "a.tsv") == [CategorisedPrompt('a "red" cat', "Animals"), ("life", "")]
    (tmp_path / "a.jsonl").write_text('{"prompt": "two cats", "tag": "counting", "include": []}\n{"prompt": "red"}\n')
    assert read_categorised(tmp_path / "a.jsonl") == [("two cats", "counting"), ("red", "")]
    (tmp_path / "a.txt").write_text("a\tcat\n\nred\n")
    assert read_categorised(tmp_path / "a.txt") == [("a\tcat", ""), ("red", "")]


def test_public_files_of_prompts() -> None:
    if not SHARED.is_dir():
        pytest.skip(f"no public data at {SHARED}")
    parti, geneval = read_categorised(SHARED / "parti.tsv"), read_categorised(SHARED / "geneval.jsonl")
    assert (len(parti), len({entry.category for entry in parti})) == (1632, 12)
    assert (len(geneval), len({entry.category for entry in geneval})) == (553, 6)
    assert len(read_categorised(SHARED / "pickapic_test.txt")) == 2048


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "cat\tAnimals\n", "begins with the columns .*allowed is Prompt<TAB>Category"),
        ("a.tsv", "", "begins with the columns"),
        ("a.tsv", "Prompt\tCategory\n", "no prompt in"),
        ("a.tsv", "Prompt\tCategory\n\tAnimals\n", "row 2: prompt is empty"),
        ("a.jsonl", "", "is empty: write"),
        ("a.jsonl", "cat\n", "row 1 is not JSON"),
        ("a.jsonl", '{"tag": "x"}\n', "row 1 lacks prompt"),
        ("a.jsonl", '{"prompt": 3}\n', "row 1: prompt got 3, allowed is a text"),
        ("a.jsonl", '{"prompt": "a", "tag": 3}\n', "row 1: the category got 3, allowed is a text"),
        ("a.txt", "\n", "no prompt in"),
    ],
    ids=str,
)
def test_bad_files_of_prompts(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_categorised(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images_per_prompt": 0}, "--images-per-prompt got 0, allowed is 1 or more"),
        ({"max_prompts": 0}, "--max-prompts got 0, allowed is 1 or more"),
        ({"kl_samples": -1}, "--kl-samples got -1, allowed is 0 or more"),
        ({"guidance_scale": float("nan")}, "--guidance-scale got nan, allowed is 0 or more"),
        ({"seed": -1}, "--seed got -1, allowed is 0 to"),
        ({"lora": None}, "nothing to compare .* with: give its --lora, or its --base model"),
        ({"rewards": "redness,nonsense"}, "reward 'nonsense' is neither a name nor a folder"),
        ({"embedder": "nonsense"}, "unknown model 'nonsense'"),
        ({"base": "nonsense"}, "unknown model 'nonsense'"),
        ({"lora": Path("missing")}, "no LoRA weights at missing"),
        ({"prompts": Path("missing.tsv")}, "cannot read missing.tsv"),
    ],
    ids=str,
)
def test_bad_values_write_nothing(config: EvalConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(replace(config, **change))
    assert not config.out.exists()


def test_pictures_that_are_no_numbers_are_not_written(config: EvalConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "draw", lambda *_: torch.full((8, 3, 8, 8), torch.nan))
    with pytest.raises(UserError, match="the tuned model drew pictures that are not numbers: use --dtype float32"):
        evaluate(config)
    assert list(config.out.glob("*/*.png")) == []
