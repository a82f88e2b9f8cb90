"""What a selector gives back, and the checks that every selector makes of what it is asked."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from mmrlhf.errors import UserError


class Choice(NamedTuple):
    """Row numbers in the order in which they were chosen, what each added (the strategy's own measure), and why, in words."""

    indices: Int[np.ndarray, " k"]
    gains: Float[np.ndarray, " k"]
    why: list[str]


def check_request(count: int, budget: int, already: Sequence[int]) -> list[int]:
    """`already` without repeats, as ints. UserError unless `budget` new rows can be found among `count`."""
    known = list(dict.fromkeys(int(index) for index in already))
    outside = [index for index in known if not 0 <= index < count]
    if outside:
        raise UserError(
            f"row {outside[0]} was selected already, allowed is 0 to {count - 1}: give rows of these embeddings"
        )
    if not 1 <= budget <= count - len(known):
        chosen = f" of which {len(known)} are selected already" if known else ""
        raise UserError(f"got budget {budget}, allowed is 1 to {count - len(known)}: there are {count} rows{chosen}")
    return known


def draw(free: Int[np.ndarray, " n"], amount: int, generator: torch.Generator) -> Int[np.ndarray, " amount"]:
    """`amount` different entries of `free`, drawn uniformly, in the order drawn."""
    return free[torch.randperm(len(free), generator=generator)[:amount].numpy()]


def remaining(count: int, taken: Sequence[int]) -> Int[np.ndarray, " free"]:
    """The row numbers below `count` that are not in `taken`, ascending."""
    free = np.ones(count, dtype=bool)
    free[list(taken)] = False
    return np.flatnonzero(free)
