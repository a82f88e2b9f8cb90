"""Whether the place of an image decides: for the annotators its place on the screen, for a reward its place in the batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import binomtest

from mmrlhf.data import Item
from mmrlhf.images import load_image
from mmrlhf.rewards.evaluation.batches import score_batches
from mmrlhf.types import Reward


def first_preferred(labels: Float[np.ndarray, " n"]) -> dict[str, Any]:
    """The share of strict answers for the first image with Wilson's 95 % interval, None without a strict answer.

    It is a bias only if `image_0` is what was shown first, and which came first was drawn at random. Source: Wilson 1927.
    """
    strict, first = int((labels != 0.5).sum()), int((labels > 0.5).sum())
    if not strict:
        return {"strict": 0, "first": None, "ci95": None}
    interval = binomtest(first, strict).proportion_ci(method="wilson")
    return {"strict": strict, "first": first / strict, "ci95": [float(interval.low), float(interval.high)]}


def batch_effect(
    reward: Reward, items: Sequence[Item], scores: Float[np.ndarray, " n"], batch_size: int
) -> float | None:
    """The largest change of a score when the items are scored in reverse and in smaller batches, over the scores' deviation.

    A scorer sees one image at a time, so that no image's place can matter; what is above rounding is a mistake in it. None
    where all scores are equal.
    """
    inputs = ((load_image(item.image), item.prompt) for item in reversed(items))
    again = score_batches(reward, inputs, max(1, batch_size // 3))[0, ::-1]
    spread = float(np.nanstd(scores))
    changes = np.abs(again - scores)
    return float(np.nanmax(changes)) / spread if spread > 0 else None
