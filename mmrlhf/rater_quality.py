"""What a rater's answers say of the rater: shares with their intervals, a bias for a side, and who fails the check questions."""

import math
from collections.abc import Iterable
from statistics import NormalDist
from typing import NamedTuple

from mmrlhf.errors import UserError
from mmrlhf.types import Preference

LEAST_CHECKS = 5  # below it, nobody is judged by their check questions


class Share(NamedTuple):
    """A share of so many answers with Wilson's 95 % interval."""

    share: float
    low: float
    high: float
    answers: int


def wilson(successes: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of a share, (0, 1) where nothing was counted. UserError for numbers that are no share. Source: Wilson 1927."""
    if not 0 <= successes <= count or not 0 < level < 1:
        raise UserError(
            f"Wilson's interval got {successes} of {count} at level {level}, allowed is 0 to count, and a level between 0 and 1"
        )
    if not count:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, weight = successes / count, z**2 / count
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / count + weight / (4 * count)) / (1 + weight)
    # rounding may not leave [0, 1], nor leave out the share itself
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def share_of(successes: int, count: int) -> Share:
    """A share with its interval; NaN of nothing."""
    return Share(successes / count if count else math.nan, *wilson(successes, count), count)


def left_shares(preferences: Iterable[Preference]) -> dict[str, Share]:
    """Of each annotator, how often the left one of two was preferred; ties do not count.

    A bias for a side, since which item is on the left is drawn: an interval without 0.5 in it.
    """
    chosen: dict[str, list[bool]] = {}
    for p in preferences:
        if p.label != 0.5:
            preferred = p.items[0] if p.label > 0.5 else p.items[1]
            chosen.setdefault(p.annotator, []).append(preferred == p.shown[0])
    return {annotator: share_of(sum(lefts), len(lefts)) for annotator, lefts in chosen.items()}


def check_minimum(minimum: float, store: object) -> None:
    """UserError for a --min-check-rate that is no share, or without the store that holds the checks."""
    if not 0 <= minimum <= 1 or (minimum and store is None):
        raise UserError(f"--min-check-rate got {minimum:g}, allowed is 0 to 1, and only with --store")


def fails_checks(passed: int, asked: int, minimum: float) -> bool:
    """Whether a rater's share of right answers is below the minimum beyond doubt: 5 or more, and the interval lies below it."""
    return asked >= LEAST_CHECKS and wilson(passed, asked)[1] < minimum
