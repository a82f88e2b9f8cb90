"""Whether a reward ignores what should not matter (recompression, resizing, mirroring) and heeds what should (the prompt)."""

import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from scipy.special import expit
from torch import Tensor
from tqdm import tqdm

from mmrlhf.agreement import pair_agreement
from mmrlhf.data import Item, Pair
from mmrlhf.images import from_pil, load_image, to_pil
from mmrlhf.rewards.evaluation.batches import score_batches
from mmrlhf.rewards.evaluation.measures import share_interval, verdicts
from mmrlhf.rewards.evaluation.position import batch_effect
from mmrlhf.types import Reward


def recompressed(image: Float[Tensor, "3 h w"], quality: int) -> Float[Tensor, "3 h w"]:
    """The picture after a JPEG of that quality, as Pillow writes it."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="JPEG", quality=quality)
    return from_pil(Image.open(buffer))


def resized(image: Float[Tensor, "3 h w"], scale: float) -> Float[Tensor, "3 h w"]:
    """Made smaller by `scale` and as large as before again, bicubic both ways."""
    picture = to_pil(image)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return from_pil(
        picture.resize((width, height), Image.Resampling.BICUBIC).resize(picture.size, Image.Resampling.BICUBIC)
    )


def mirrored(image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """Left and right exchanged."""
    return image.flip(-1)


def shifted(image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """One pixel to the right; the first column is doubled."""
    return torch.cat([image[..., :1], image[..., :-1]], dim=-1)


# what people hardly see, or do not mind
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "JPEG quality 95": partial(recompressed, quality=95),
    "JPEG quality 75": partial(recompressed, quality=75),
    "JPEG quality 50": partial(recompressed, quality=50),
    "JPEG quality 25": partial(recompressed, quality=25),
    "resized to 75 % and back": partial(resized, scale=0.75),
    "resized to 50 % and back": partial(resized, scale=0.5),
    "mirrored": mirrored,
    "shifted by a pixel": shifted,
}


def sensitivity(
    reward: Reward,
    pairs: Sequence[Pair],
    *,
    temperature: float = 1.0,
    threshold: float = 0.0,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = False,
) -> dict[str, Any]:
    """Scores of the pairs' images as they are, after each of `CHANGES`, and for another pair's prompt.

    Keys: pairs, images, changes (`effect_of_change` a row), prompt (`effect_of_prompt`, None with one prompt only), batch_effect.
    `temperature` divides margins before a verdict is read off, `threshold` is that of ties.
    """
    items = list(dict.fromkeys(Item(pair.prompt, image) for pair in pairs for image in (pair.image_0, pair.image_1)))
    prompts = [item.prompt for item in items]
    other = other_prompts(prompts, seed)

    def variants() -> Iterator[tuple[Tensor, str]]:
        bar = tqdm(items, desc="perturb", unit="image", disable=not progress)
        for item, wrong in zip(bar, other or prompts, strict=True):
            image = load_image(item.image)
            yield image, item.prompt
            yield from ((change(image), item.prompt) for change in CHANGES.values())
            yield image, wrong

    scores = score_batches(reward, variants(), batch_size)[0].reshape(len(items), len(CHANGES) + 2)
    spread = float(np.nanstd(scores[:, 0]))
    rows = {item: row for row, item in enumerate(items)}
    sides = np.array([[rows[Item(pair.prompt, image)] for image in (pair.image_0, pair.image_1)] for pair in pairs])
    margins = (scores[sides[:, 0]] - scores[sides[:, 1]]) / temperature
    units = [pair.unit for pair in pairs]
    unit_of = {
        item: pair.unit for pair in pairs for item in (Item(pair.prompt, pair.image_0), Item(pair.prompt, pair.image_1))
    }
    effects = [
        {"change": name}
        | effect_of_change(scores[:, [0, column]], margins[:, [0, column]], units, spread, threshold, seed)
        for column, name in enumerate(CHANGES, start=1)
    ]
    swapped = effect_of_prompt(scores[:, [0, -1]], [unit_of[item] for item in items], spread, seed) if other else None
    return {
        "pairs": len(pairs),
        "images": len(items),
        "changes": effects,
        "prompt": swapped,
        "batch_effect": batch_effect(reward, items, scores[:, 0], batch_size),
    }


def effect_of_change(
    scores: Float[np.ndarray, "n 2"],
    margins: Float[np.ndarray, "p 2"],
    units: Sequence[str],
    spread: float,
    threshold: float,
    seed: int,
) -> dict[str, Any]:
    """(before, after) in columns → mean |Δscore| and mean Δscore over `spread`, and the share of verdicts that change.

    A change to or from a tie counts half. Abstentions are left out.
    """
    change = scores[:, 1] - scores[:, 0]
    change = change[~np.isnan(change)]
    kept = ~np.isnan(margins).any(axis=1)
    before, after = (verdicts(expit(margins[kept, column]), threshold) for column in (0, 1))
    flips = 1 - np.asarray(pair_agreement(before, after), dtype=float)
    kept_units = [unit for unit, is_kept in zip(units, kept, strict=True) if is_kept]
    return {
        "mean_abs": float(np.abs(change).mean()) / spread if spread > 0 and len(change) else None,
        "mean": float(change.mean()) / spread if spread > 0 and len(change) else None,
        "flips": float(flips.mean()) if len(flips) else None,
        "flips_ci95": share_interval(flips, kept_units, seed),
    }


def effect_of_prompt(
    scores: Float[np.ndarray, "n 2"], units: Sequence[str], spread: float, seed: int
) -> dict[str, Any] | None:
    """(own prompt, another's) in columns → the share of images whose score falls or stays, and the mean fall over `spread`."""
    kept = ~np.isnan(scores).any(axis=1)
    if not kept.any():
        return None
    change = scores[kept, 1] - scores[kept, 0]
    falls = (change < 0).astype(float)
    kept_units = [unit for unit, is_kept in zip(units, kept, strict=True) if is_kept]
    return {
        "n": len(change),
        "falls": float(falls.mean()),
        "falls_ci95": share_interval(falls, kept_units, seed),
        "stays": float((change == 0).mean()),
        "mean": float(change.mean()) / spread if spread > 0 else None,
    }


def other_prompts(prompts: Sequence[str], seed: int) -> list[str] | None:
    """For each a different prompt of the same list, drawn at random; None where there is no other."""
    distinct = list(dict.fromkeys(prompts))
    if len(distinct) < 2:
        return None
    places = {prompt: place for place, prompt in enumerate(distinct)}
    steps = np.random.default_rng(seed).integers(1, len(distinct), size=len(prompts))
    return [distinct[(places[prompt] + step) % len(distinct)] for prompt, step in zip(prompts, steps, strict=True)]
