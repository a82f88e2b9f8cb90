"""Limits that a choice of pairs keeps to: how many of a prompt, at most and at least, and how often an image is shown."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from mmrlhf.errors import UserError


class Caps(NamedTuple):
    """At most so many pairs a prompt, at least so many where it has them, and at most so many that show an image."""

    most_per_prompt: int
    least_per_prompt: int
    most_per_image: int


class PairLimits:
    """Which pairs may still be chosen, given how many picks are left; the pairs of the numbers in `asked` count already."""

    def __init__(
        self, prompts: Int[np.ndarray, " p"], images: Int[np.ndarray, "p 2"], caps: Caps, asked: Sequence[int] = ()
    ):
        self.prompts, self.images, self.caps = prompts, images, caps
        self.free = np.ones(len(prompts), dtype=bool)
        self.of_prompt = np.zeros(prompts.max(initial=-1) + 1, np.int64)
        self.of_image = np.zeros(images.max(initial=-1) + 1, np.int64)
        for index in asked:
            self.take(index)

    def take(self, index: int) -> None:
        """Count a pair as asked."""
        self.free[index] = False
        self.of_prompt[self.prompts[index]] += 1
        self.of_image[self.images[index]] += 1

    def allows(self, left: int) -> Bool[np.ndarray, " p"]:
        """Free pairs under both caps; only those of prompts that lack pairs as soon as the picks left are all owed to these."""
        shown = (self.of_image >= self.caps.most_per_image)[self.images].any(axis=1)
        allowed = self.free & ~shown & (self.of_prompt < self.caps.most_per_prompt)[self.prompts]
        available = np.bincount(self.prompts[allowed], minlength=len(self.of_prompt))
        owed = np.clip(self.caps.least_per_prompt - self.of_prompt, 0, available)
        return allowed if owed.sum() < left else allowed & (owed > 0)[self.prompts]


def roomiest(sizes: Int[np.ndarray, " g"], caps: Caps) -> int:
    """How many pairs prompts of so many images give at most under the caps (a graph whose degrees are all the cap, or nearly)."""
    whole = sizes * (sizes - 1) // 2
    return int(np.minimum(np.minimum(whole, sizes * caps.most_per_image // 2), caps.most_per_prompt).sum())


def caps_for(
    budget: int,
    sizes: Int[np.ndarray, " g"],
    least: int | None,
    most: int | None,
    shown: int | None,
    *,
    earlier: int = 0,
) -> Caps:
    """The caps asked for; for each that is None twice the even share, doubled while `budget` and `earlier` pairs do not fit.

    `sizes` are the numbers of images of the prompts. The least a prompt is 1 where the budget allows it for all. UserError
    where the budget cannot fit.
    """
    prompts, images, wanted = len(sizes), int(sizes.sum()), budget + earlier
    whole = int((sizes * (sizes - 1) // 2).sum())
    least = int(budget >= prompts) if least is None else least
    caps = Caps(most or max(least, -(-2 * wanted // prompts)), least, shown or -(-4 * wanted // images))
    for _ in range(40):  # beyond any number of pairs
        if roomiest(sizes, caps) >= min(wanted, whole):
            break
        caps = looser(caps, most, shown)
    room = roomiest(sizes, caps) - earlier
    if room < budget:
        each, often = min(whole, caps.most_per_prompt), min(whole, caps.most_per_image)
        raise UserError(
            f"--budget got {budget}, allowed is 1 to {max(0, room)}: {prompts} prompts with {images} images have {whole} pairs, "
            f"{earlier} asked earlier among them, at most {each} a prompt and {often} an image"
        )
    if least > caps.most_per_prompt or least * prompts > wanted:
        allowed = min(caps.most_per_prompt, wanted // prompts)
        raise UserError(
            f"--least-per-prompt got {least}, allowed is up to {allowed}: {prompts} prompts share {wanted} pairs, at most "
            f"{caps.most_per_prompt} each"
        )
    return caps


def looser(caps: Caps, most: int | None, shown: int | None) -> Caps:
    """Those caps doubled that nobody asked for."""
    return Caps(most or 2 * caps.most_per_prompt, caps.least_per_prompt, shown or 2 * caps.most_per_image)
