"""Which pairs are left to judge a reward by."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrlhf.data import Pair
from mmrlhf.errors import UserError
from mmrlhf.images import save_image
from mmrlhf.rewards.evaluation.scored_pairs import pair_items, pair_margins, score_pairs
from mmrlhf.rewards.rules.simple import Redness


class Picky(Redness):
    """Redness; abstains on black pictures."""

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        redness = images[:, 0].mean(dim=(1, 2))
        return torch.where(redness == 0, math.nan, redness)


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    for level in (0.0, 0.2, 1.0):
        save_image(torch.full((3, 2, 2), level), tmp_path / f"{level}.png")
    black, dark, white = (tmp_path / f"{level}.png" for level in (0.0, 0.2, 1.0))
    return [
        Pair("p", dark, white, 0.0),
        Pair("p", black, white, 0.0),
        Pair("q", white, dark, 0.25, group="g"),
        Pair("q", white, dark, 0.5, has_label=False),
    ]


def test_labels_and_scores_of_what_is_left(pairs: list[Pair]) -> None:
    found = score_pairs(Picky(), pairs, batch_size=2)
    assert found.pairs == [pairs[0], pairs[2]] and (found.abstained, found.unlabelled) == (1, 1)
    np.testing.assert_allclose(found.scores, [[0.2, 1], [1, 0.2]], atol=1e-6)
    np.testing.assert_allclose(found.margins, [-0.8, 0.8], atol=1e-6)
    assert found.labels.tolist() == [0, 0.25] and found.units == ["p", "g"]
    np.testing.assert_allclose(pair_margins(Picky(), pairs), [-0.8, math.nan, 0.8, 0.8], atol=1e-6)
    assert [item.image for item in pair_items(pairs[:1])] == [pairs[0].image_0, pairs[0].image_1]


def test_nothing_left(pairs: list[Pair]) -> None:
    with pytest.raises(UserError, match="none of 1 pairs has a label"):
        score_pairs(Picky(), pairs[3:])
    with pytest.raises(UserError, match="abstains on all 2 pairs"):
        score_pairs(Picky(), [pairs[1], dataclasses.replace(pairs[1], prompt="r")])
