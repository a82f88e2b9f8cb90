"""Position bias of annotators, and a scorer whose batch matters."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrlhf.data import Item
from mmrlhf.images import save_image
from mmrlhf.rewards.evaluation.position import batch_effect, first_preferred
from mmrlhf.rewards.rules.simple import Brightness
from mmrlhf.rewards.score import score_items


def test_share_for_the_first() -> None:
    found = first_preferred(np.array([1.0, 0.8, 0.0, 0.5, 0.6]))
    assert (found["strict"], found["first"]) == (4, 0.75)
    # Wilson by hand: (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n)
    z, n, p = 1.959964, 4, 0.75
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert found["ci95"] == pytest.approx([(centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)])
    assert first_preferred(np.full(3, 0.5)) == {"strict": 0, "first": None, "ci95": None}


class OfTheBatch(Brightness):
    """The mistake of dividing by a maximum of the batch."""

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        scores = super().__call__(images, prompts)
        return scores / scores.max()


def test_a_score_that_depends_on_the_batch_is_seen(tmp_path: Path) -> None:
    items = []
    for i in range(7):
        save_image(torch.full((3, 4, 4), (1 + i) / 10), tmp_path / f"{i}.png")
        items.append(Item("p", tmp_path / f"{i}.png"))
    sound, faulty = Brightness(), OfTheBatch()
    assert batch_effect(sound, items, score_items(sound, items, batch_size=6), 6) == pytest.approx(0, abs=1e-6)
    effect = batch_effect(faulty, items, score_items(faulty, items, batch_size=6), 6)
    assert effect is not None and effect > 0.5
    assert batch_effect(sound, items[:1], np.ones(1), 6) is None
