"""`mmrlhf reward score`: one score an image; and the scoring of image files that the other reward commands share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from mmrlhf.data import Item, read_items, relative, write_jsonl
from mmrlhf.errors import UserError
from mmrlhf.images import load_image
from mmrlhf.models import pick_device
from mmrlhf.rewards import load_reward
from mmrlhf.rewards.evaluation.batches import score_batches
from mmrlhf.types import Reward


@dataclass(frozen=True)
class ScoreConfig:
    """Score every image of a list."""

    reward: str
    """Folder that `mmrlhf reward train` wrote, or a reward's name."""
    items: Path
    """ITEMS.jsonl: {"prompt", "image"} a line, paths relative to the file."""
    out: Path
    """File to write: a line an item, in order, with "score" (null where the reward abstains)."""
    batch_size: int = 32
    """Images scored at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""


def score(config: ScoreConfig) -> list[dict[str, Any]]:
    """Score the items, write the file, return its rows."""
    items = read_items(config.items)
    check_output(config.out)
    scores = score_items(load_on(config.reward, config.device), items, batch_size=config.batch_size, progress=True)
    rows = [
        {
            "prompt": item.prompt,
            "image": relative(item.image, config.out),
            "score": None if np.isnan(value) else float(value),
        }
        for item, value in zip(items, scores, strict=True)
    ]
    write_jsonl(rows, config.out)
    print(f"{len(rows)} scores (mean {mean_text(scores)}): {config.out}")
    return rows


def score_items(
    reward: Reward, items: Sequence[Item], *, batch_size: int = 32, progress: bool = False
) -> Float[np.ndarray, " n"]:
    """A score an item, in order; each different item is scored once, in batches of images of one size.

    NaN where the reward abstains. UserError for an unreadable image, or an infinite score.
    """
    if batch_size < 1:
        raise UserError(f"--batch-size got {batch_size}, allowed is 1 or more")
    distinct = list(dict.fromkeys(items))
    bar = tqdm(distinct, desc="score", unit="image", disable=not progress)
    scores = score_batches(reward, ((load_image(item.image), item.prompt) for item in bar), batch_size)[0]
    columns = {item: column for column, item in enumerate(distinct)}
    scores = scores[[columns[item] for item in items]]
    if np.isinf(scores).any():
        item = items[int(np.isinf(scores).argmax())]
        raise UserError(f"the reward gave {item.image} an infinite score: allowed are numbers, and NaN to abstain")
    return scores


def load_on(name: str | Path, device: str) -> Reward:
    """The reward that `--reward` names, on `--device` where it has weights to move."""
    where = pick_device(device)
    reward: Any = load_reward(name)
    return reward.to(where) if hasattr(reward, "to") else reward


def check_output(path: Path) -> None:
    """UserError where a file cannot be written because a folder has its name: better before the work than after."""
    if path.is_dir():
        raise UserError(f"--out {path} is a folder: give the name of a file to write")


def mean_text(scores: Float[np.ndarray, " n"]) -> str:
    """The mean of the scores that are there, in words for a summary line."""
    given = scores[~np.isnan(scores)]
    abstained = f", {len(scores) - len(given)} abstained" if len(given) < len(scores) else ""
    return (f"{given.mean():.4g}" if len(given) else "of nothing") + abstained
