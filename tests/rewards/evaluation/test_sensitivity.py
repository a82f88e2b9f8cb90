"""Changes of images that should not matter, and scorers to which they do and do not."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrlhf.data import Pair
from mmrlhf.images import save_image
from mmrlhf.rewards.evaluation.sensitivity import (
    CHANGES,
    effect_of_change,
    effect_of_prompt,
    mirrored,
    other_prompts,
    recompressed,
    resized,
    sensitivity,
    shifted,
)


class LeftBrightness:
    """Brightness of the left half, plus the prompt's length on request; abstains on quite black pictures."""

    differentiable = False

    def __init__(self, length: float = 0.0) -> None:
        self.length = length

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        left = images[..., : images.shape[-1] // 2].mean(dim=(1, 2, 3))
        lengths = torch.tensor([self.length * len(prompt) for prompt in prompts])
        return torch.where(images.amax(dim=(1, 2, 3)) == 0, math.nan, left + lengths)


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    """Twelve prompts; the first image is bright on the left, the second on the right."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(12):
        paths = []
        for side in range(2):
            image = 0.3 * torch.rand(3, 16, 20, generator=generator)
            image[..., slice(0, 10) if side == 0 else slice(10, 20)] += 0.6
            paths.append(tmp_path / f"{i}-{side}.png")
            save_image(image, paths[-1])
        found.append(Pair("p" * (i + 1), paths[0], paths[1], 1.0))
    return found


def test_a_scorer_of_the_left_half_minds_mirroring(pairs: list[Pair]) -> None:
    found = sensitivity(LeftBrightness(), pairs, batch_size=5)
    rows = {row["change"]: row for row in found["changes"]}
    assert list(rows) == list(CHANGES) and (found["pairs"], found["images"]) == (12, 24)
    assert rows["mirrored"]["flips"] == 1 and rows["mirrored"]["mean_abs"] == pytest.approx(2, abs=0.05)
    assert rows["mirrored"]["mean"] == pytest.approx(0, abs=0.1)
    assert rows["mirrored"]["flips_ci95"][1] == 1
    assert rows["JPEG quality 95"]["flips"] == 0 and rows["JPEG quality 95"]["mean_abs"] < 0.05
    assert rows["JPEG quality 25"]["mean_abs"] > rows["JPEG quality 95"]["mean_abs"]
    assert found["prompt"]["stays"] == 1 and found["prompt"]["falls"] == 0  # it sees no prompt
    assert found["batch_effect"] < 1e-5


def test_a_scorer_of_the_prompt_is_seen(pairs: list[Pair]) -> None:
    found = sensitivity(LeftBrightness(length=-5.0), pairs, seed=1)["prompt"]
    lengths = [len(pair.prompt) for pair in pairs for _ in range(2)]
    others = [len(prompt) for prompt in other_prompts(["p" * n for n in lengths], 1) or []]
    assert found["falls"] == np.mean(np.array(others) > lengths)
    assert found["falls_ci95"][0] < found["falls"] < found["falls_ci95"][1] and found["n"] == 24


def test_one_prompt_and_abstentions(tmp_path: Path) -> None:
    save_image(torch.full((3, 4, 4), 0.004), tmp_path / "dark.png")  # one level, which JPEG may turn to black
    save_image(torch.ones(3, 4, 4), tmp_path / "white.png")
    found = sensitivity(LeftBrightness(), [Pair("p", tmp_path / "dark.png", tmp_path / "white.png", 1.0)])
    assert found["prompt"] is None
    assert all(row["flips"] in (0, None) and row["flips_ci95"] is None for row in found["changes"])


def test_effects_by_hand() -> None:
    scores = np.array([[1.0, 2.0], [3.0, 2.0], [0.0, math.nan], [1.0, 1.0]])
    margins = np.array([[1.0, -1.0], [1.0, 0.0], [1.0, math.nan], [1.0, 1.0]])
    found = effect_of_change(scores, margins, ["a", "b", "c", "d"], 2.0, 0.0, 0)
    assert found["mean_abs"] == pytest.approx((1 + 1 + 0) / 3 / 2) and found["mean"] == 0
    assert found["flips"] == pytest.approx((1 + 0.5 + 0) / 3)
    still = effect_of_change(scores, margins, ["a", "b", "c", "d"], 0.0, 0.0, 0)
    assert still["mean_abs"] is None and still["flips"] == found["flips"]
    prompt = effect_of_prompt(scores, ["a", "b", "c", "d"], 2.0, 0)
    assert prompt is not None
    assert (prompt["falls"], prompt["stays"], prompt["mean"]) == pytest.approx((1 / 3, 1 / 3, 0))
    assert effect_of_prompt(np.full((2, 2), math.nan), ["a", "b"], 1.0, 0) is None


def test_other_prompts_are_others() -> None:
    prompts = ["", "a", "b", "a", "c"] * 50
    found = other_prompts(prompts, 0)
    assert found is not None and all(a != b for a, b in zip(prompts, found, strict=True))
    counts = [sum(other == name for own, other in zip(prompts, found, strict=True) if own == "") for name in "abc"]
    assert min(counts) > 5  # each of the others gets its turn
    assert other_prompts(["a", "a"], 0) is None


def test_changes_of_a_picture() -> None:
    image = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(0))
    for change in CHANGES.values():
        changed = change(image)
        assert changed.shape == image.shape and changed.min() >= 0 and changed.max() <= 1
    assert torch.equal(mirrored(mirrored(image)), image)
    assert torch.equal(shifted(image)[..., 1:], image[..., :-1])
    errors = [(recompressed(image, quality) - image).abs().mean() for quality in (95, 75, 50, 25)]
    assert errors == sorted(errors)
    flat = torch.full((3, 8, 8), 0.4)
    assert (resized(flat, 0.5) - flat).abs().max() < 1 / 255
    assert resized(image[:, :1, :1], 0.5).shape == (3, 1, 1)
