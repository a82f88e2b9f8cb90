"""The scores of a round of images: as a file has them, or as a reward gives them to its items."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mmrlhf.data import ITEM_COLUMNS, Item, item_of, lines_of, parse_row, prompt_of
from mmrlhf.errors import UserError
from mmrlhf.rewards.score import score_items
from mmrlhf.types import Reward


class Sample(NamedTuple):
    """The scores of a round that are numbers, their prompts and images (which may be gone), and how many others there were."""

    prompts: list[str]
    scores: Float[np.ndarray, " n"]
    abstained: int
    images: list[Path]


def read_scores(path: Path, reward: Reward | None, batch_size: int) -> Sample:
    """The scores in a file, or the reward's of its items where it has none. UserError for a mixture, or no score at all."""
    prompts: list[str] = []
    images: list[Path] = []
    given: list[float] = []
    items: list[Item] = []
    for where, line in lines_of(path, ITEM_COLUMNS):
        row = parse_row(line, where, ITEM_COLUMNS, ("score",))
        prompts.append(prompt_of(row, where))
        images.append(path.parent / str(row["image"]))
        if "score" in row:
            given.append(score_of(row["score"], where))
        else:
            items.append(item_of(row, path.parent, where))
    if given and items:
        raise UserError(
            f"{path} has a score in {len(given)} rows and none in {len(items)}: give all of them one, or none"
        )
    if given:
        scores = np.array(given)
    elif reward is not None:
        scores = score_items(reward, items, batch_size=batch_size, progress=True)
    else:
        raise UserError(f'{path} has no "score": give --reward, or the file that `mmrlhf reward score` wrote')
    kept = ~np.isnan(scores)
    if not kept.any():
        raise UserError(f"{path} has {len(scores)} abstentions and no score: give items that the reward can judge")
    rows = np.flatnonzero(kept)
    return Sample([prompts[i] for i in rows], scores[kept], int((~kept).sum()), [images[i] for i in rows])


def score_of(value: Any, where: str) -> float:
    """A score as `mmrlhf reward score` writes it; null is an abstention, NaN."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where}: score got {value!r}, allowed is a number, or null where the reward abstained")
    return float(value)
