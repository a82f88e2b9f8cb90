"""Batches of one size, in order, for single scorers and ensembles."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrlhf.data import Item
from mmrlhf.images import save_image
from mmrlhf.rewards.evaluation.batches import member_scores, score_batches
from mmrlhf.rewards.rules.simple import Brightness


class Ensemble:
    """Member k gives k times the brightness plus the prompt's length."""

    differentiable = False

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return self.members(images, prompts).mean(dim=0)

    def members(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        brightness = images.mean(dim=(1, 2, 3))
        return torch.stack([k * brightness + torch.tensor([float(len(p)) for p in prompts]) for k in (1, 2, 3)])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_scores_are_in_order_whatever_the_batches(batch_size: int) -> None:
    inputs = [(torch.full((3, 2 + i % 3, 4), i / 10), "p" * i) for i in range(8)]
    brightness = np.arange(8) / 10
    found = score_batches(Brightness(), inputs, batch_size)
    assert found.shape == (1, 8)
    np.testing.assert_allclose(found[0] / found[0, 1], brightness / 0.1, rtol=1e-5)
    members = score_batches(Ensemble().members, inputs, batch_size)
    expected = [k * brightness + np.arange(8) for k in (1, 2, 3)]
    np.testing.assert_allclose(members, expected, rtol=1e-5)


def test_members_of_items(tmp_path: Path) -> None:
    for level in (0.2, 0.6):
        save_image(torch.full((3, 4, 4), level), tmp_path / f"{level}.png")
    items = [Item("ab", tmp_path / "0.6.png"), Item("a", tmp_path / "0.2.png"), Item("ab", tmp_path / "0.6.png")]
    found = member_scores(Ensemble(), items, 2)
    assert found is not None
    np.testing.assert_allclose(found, [[2.6, 1.2, 2.6], [3.2, 1.4, 3.2], [3.8, 1.6, 3.8]], atol=1e-6)
    assert member_scores(Brightness(), items, 2) is None
