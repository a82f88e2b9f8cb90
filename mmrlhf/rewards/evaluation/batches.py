"""Scores of images that are in memory or made on the way, in batches of one size."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.data import Item
from mmrlhf.images import load_image
from mmrlhf.types import Reward


def score_batches(
    score: Callable[[Tensor, Sequence[str]], Tensor], inputs: Iterable[tuple[Tensor, str]], batch_size: int
) -> Float[np.ndarray, "k n"]:
    """`score` gives "b", or "k b", for "b 3 h w" images and their prompts; the inputs are taken one by one, and kept in order.

    Of no input there is one row of no scores.
    """
    found: dict[int, Tensor] = {}
    waiting: dict[torch.Size, list[tuple[int, Tensor, str]]] = {}

    def finish(batch: list[tuple[int, Tensor, str]]) -> None:
        with torch.no_grad():
            scores = score(torch.stack([image for _, image, _ in batch]), [prompt for _, _, prompt in batch])
        columns = scores.double().cpu().reshape(-1, len(batch)).T
        found.update(zip((number for number, _, _ in batch), columns, strict=True))

    for number, (image, prompt) in enumerate(inputs):
        same_size = waiting.setdefault(image.shape, [])
        same_size.append((number, image, prompt))
        if len(same_size) == batch_size:
            finish(waiting.pop(image.shape))
    for batch in waiting.values():
        finish(batch)
    if not found:
        return np.empty((1, 0))
    return torch.stack([found[number] for number in range(len(found))], dim=1).numpy()


def member_scores(reward: Reward, items: Sequence[Item], batch_size: int) -> Float[np.ndarray, "k n"] | None:
    """The score of each member of an ensemble for each item; None for a reward that is no ensemble."""
    members = getattr(reward, "members", None)
    if members is None:
        return None
    distinct = list(dict.fromkeys(items))
    scores = score_batches(members, ((load_image(item.image), item.prompt) for item in distinct), batch_size)
    columns = {item: column for column, item in enumerate(distinct)}
    return scores[:, [columns[item] for item in items]] if len(scores) > 1 else None
