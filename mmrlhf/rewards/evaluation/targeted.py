"""The next round of questions where a reward has drifted: about the images that are of a kind it has seen too little of."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mmrlhf.data import relative, write_jsonl
from mmrlhf.drift import Stability
from mmrlhf.errors import UserError
from mmrlhf.rewards.evaluation.round_scores import Sample


def growth(scores: Float[np.ndarray, " n"], stability: Stability) -> Float[np.ndarray, " n"]:
    """log(share after / share before) of each score's bin: above 0 where there are more such scores than there were."""
    logs = np.log(np.array(stability.after) / np.array(stability.before))
    return logs[np.searchsorted(np.array(stability.edges), scores)]


def targeted_pairs(
    before: Sample, after: Sample, stability: Stability, budget: int, seed: int
) -> list[tuple[str, Path, Path, str]]:
    """(prompt, new image, other image, why) of at most `budget` pairs, those about the bins that grew most first.

    The other is an image of the prompt from the round before: is the new one better, as the reward says? Where there is none, it
    is the new image of the prompt whose score is furthest away. Prompts take turns; equals are drawn.
    """
    generator = np.random.default_rng(seed)
    earlier: dict[str, list[int]] = {}
    for row, prompt in enumerate(before.prompts):
        earlier.setdefault(prompt, []).append(row)
    rows_of: dict[str, list[int]] = {}
    grown = growth(after.scores, stability)
    order = generator.permutation(len(grown))
    for row in order[np.argsort(-grown[order], kind="stable")].tolist():
        rows_of.setdefault(after.prompts[row], []).append(row)
    queue = [(turn, -grown[row], row) for rows in rows_of.values() for turn, row in enumerate(rows) if grown[row] > 0]
    chosen: dict[frozenset[Path], tuple[str, Path, Path, str]] = {}
    for _, _, row in sorted(queue, key=lambda entry: entry[:2]):
        prompt, image = after.prompts[row], after.images[row]
        if earlier.get(prompt):
            other = before.images[int(generator.choice(earlier[prompt]))]
        else:
            other = after.images[max(rows_of[prompt], key=lambda one: abs(after.scores[one] - after.scores[row]))]
        if other != image:
            why = f"drift: such scores became {np.exp(grown[row]):.1f} times as frequent"
            chosen.setdefault(frozenset((image, other)), (prompt, image, other, why))
        if len(chosen) == budget:
            break
    return list(chosen.values())


def write_targets(pairs: list[tuple[str, Path, Path, str]], file: Path) -> None:
    """A PAIRS.jsonl without labels, as `mmrlhf rate --items` asks about it. UserError where an image is gone."""
    gone = next((image for _, *images, _ in pairs for image in images if not image.is_file()), None)
    if gone is not None:
        raise UserError(
            f"--targets asks people about {gone}, which is gone: put the image back, or leave out --targets"
        )
    rows: list[dict[str, Any]] = [
        {"prompt": prompt, "image_0": relative(new, file), "image_1": relative(other, file), "why": why}
        for prompt, new, other, why in pairs
    ]
    write_jsonl(rows, file)
