"""Diversity within prompts: closed forms, and every pair taken one by one."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.diversity import DiversityWatch, embed_files, pairwise_distances
from mmrlhf.errors import UserError
from mmrlhf.images import load_image, save_image
from mmrlhf.rewards.encoders.clip import load_backbone
from mmrlhf.types import Rollout
from tests.small_clip import small_clip


def test_closed_forms() -> None:
    """Equal 0, orthogonal 1, opposite 2; lengths do not matter; one picture has no diversity."""
    rows = np.array([[1.0, 0], [5, 0], [1, 0], [0, 2], [1, 0], [-3, 0], [1, 1]])
    found = pairwise_distances(rows, ["equal", "equal", "right", "right", "opposite", "opposite", "alone"])
    assert found == pytest.approx({"equal": 0.0, "right": 1.0, "opposite": 2.0}, abs=1e-12)


def test_every_pair_one_by_one() -> None:
    rows = np.random.default_rng(0).normal(size=(12, 5))
    groups = [0, 1, 1, 0, 2, 1, 0, 2, 2, 2, 1, 0]
    found = pairwise_distances(rows, groups)
    for group in range(3):
        own = rows[np.array(groups) == group]
        each = [1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in combinations(own, 2)]
        assert found[group] == pytest.approx(np.mean(each))


def test_files_of_several_sizes_are_embedded_in_order(tmp_path: Path) -> None:
    backbone = load_backbone(small_clip(tmp_path / "clip"))
    generator = torch.Generator().manual_seed(0)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        save_image(torch.rand(3, 32 + 16 * (number % 2), 32, generator=generator), path)
    rows = embed_files(backbone, paths, batch_size=2)
    for path, row in zip(paths, rows, strict=True):
        with torch.no_grad():
            alone = backbone.embed_images(load_image(path).unsqueeze(0))[0]
        np.testing.assert_allclose(row, alone.numpy(), atol=1e-5)


def test_samples_are_watched_within_their_prompts(tmp_path: Path) -> None:
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images[1] = images[0]
    prompts = ("a cat", "a cat", "a dog", "red", "a dog")
    empty = torch.zeros(5, 0)
    rollout = Rollout(prompts, torch.zeros(5, 0, 4, 8, 8), torch.zeros(5, 0, 4, 8, 8), empty.long(), empty, images,
                      torch.zeros(5, 4, 8, 8))  # fmt: skip
    watch = DiversityWatch(str(small_clip(tmp_path / "clip")))
    found = watch.figures(rollout, batch_size=2)["diversity"]
    assert watch.backbone is not None
    rows = watch.backbone.embed_images(images).detach().numpy()
    assert found == pytest.approx((0 + 1 - rows[2] @ rows[4]) / 2, abs=1e-5)
    assert watch.figures(rollout._replace(prompts=("1", "2", "3", "4", "5"))) == {}
    assert DiversityWatch("").figures(rollout) == {}


@pytest.mark.parametrize("name", ["tiny-clp", "tiny-sd"])
def test_an_embedder_that_is_none_is_told_at_once(name: str) -> None:
    with pytest.raises(UserError, match=f"--embedder got '{name}': "):
        DiversityWatch(name)
