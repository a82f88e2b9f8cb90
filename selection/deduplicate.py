"""Near-duplicates left out: a row is kept unless it is too similar to one kept before it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from tqdm import tqdm

from mmrlhf.errors import UserError
from selection.choice import Choice, check_request, remaining
from selection.ranking import check_values
from selection.rows import Rows

BLOCK, KEPT_AT_ONCE = 1024, 8192
ROUNDING = 1e-6  # of a cosine in float32: threshold 1 must find exact copies


class Distinct(NamedTuple):
    """Rows kept, in the order met, and for each row met the first kept that it is a near-duplicate of (others have -1)."""

    kept: Int[np.ndarray, " k"]
    copy_of: Int[np.ndarray, " n"]


def deduplicate(
    embeddings: Float[np.ndarray, "n d"],
    budget: int,
    *,
    already: Sequence[int] = (),
    generator: torch.Generator,
    threshold: float = 0.95,
    worth: Float[np.ndarray, " w"] | None = None,
) -> Choice:
    """The first `budget` new rows, by row number or by falling `worth`, of cosine below `threshold` to all those before.

    Rows in `already` count as kept. The gain is the worth (0 without). UserError where fewer rows are left: a
    near-duplicate is never chosen. Nothing is drawn from `generator`. See `distinct` for the cost.
    """
    known = check_request(len(embeddings), budget, already)
    found = distinct(embeddings, threshold=threshold, already=known, worth=worth, most=budget)
    if len(found.kept) < budget:
        raise UserError(
            f"got budget {budget}, allowed is 1 to {len(found.kept)}: no more rows have a cosine below {threshold} to "
            "those before them; raise the threshold"
        )
    copies = np.bincount(found.copy_of[found.copy_of >= 0], minlength=len(embeddings))
    gains = np.zeros(budget) if worth is None else np.asarray(worth, dtype=np.float64)[found.kept]
    why = [f"no near-duplicate before it, {copies[index]} of the rows met are its own" for index in found.kept]
    return Choice(found.kept, gains, why)


def distinct(
    embeddings: Float[np.ndarray, "n d"],
    *,
    threshold: float,
    already: Sequence[int] = (),
    worth: Float[np.ndarray, " w"] | None = None,
    most: int | None = None,
) -> Distinct:
    """The new rows that have a cosine below `threshold` (to 1e-6) to `already` and to every row kept before them.

    Rows are met by row number, or by falling `worth`; it ends when `most` are kept. Rows of zeros are copies of one
    another and like nothing else. Blocks of 1,024 rows against at most 8,192 kept ones: never n × n in memory, though
    n·kept similarities are computed.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"got threshold {threshold}, allowed is above 0 to 1 (exact copies up to length)")
    rows = Rows(embeddings, unit=True)
    order = remaining(len(rows), already)
    if worth is not None:
        order = order[np.argsort(-check_values("worth", worth, len(rows))[order], kind="stable")]
    most = len(rows) if most is None else most
    centres = list(already)
    copy_of = np.full(len(rows), -1)
    for start in tqdm(range(0, len(order), BLOCK), desc="near-duplicates", disable=None, delay=2):
        block = order[start : start + BLOCK]
        if len(centres) - len(already) >= most:
            break
        copy_of[block] = compare(rows, block, centres, threshold - ROUNDING)
        within(rows, block, copy_of, centres, threshold - ROUNDING, most + len(already))
    return Distinct(np.array(centres[len(already) :], dtype=np.int64), copy_of)


def compare(rows: Rows, block: Int[np.ndarray, " b"], centres: list[int], least: float) -> Int[np.ndarray, " b"]:
    """For each row of the block the first of `centres` that is at least `least` similar, or -1."""
    found = np.full(len(block), -1)
    for start in range(0, len(centres), KEPT_AT_ONCE):
        numbers = np.array(centres[start : start + KEPT_AT_ONCE])
        open_rows = np.flatnonzero(found < 0)
        alike = cosines(rows[block[open_rows]], rows[numbers]) >= least
        hit = alike.any(axis=1)
        found[open_rows[hit]] = numbers[alike.argmax(axis=1)[hit]]
    return found


def within(
    rows: Rows,
    block: Int[np.ndarray, " b"],
    copy_of: Int[np.ndarray, " n"],
    centres: list[int],
    least: float,
    most: int,
) -> None:
    """Keep rows of the block one by one, marking the later copies of each, until `most` rows are kept."""
    free = block[copy_of[block] < 0]
    similarity = cosines(rows[free], rows[free])
    for number, index in enumerate(free):
        if copy_of[index] >= 0:
            continue
        if len(centres) >= most:
            return
        centres.append(int(index))
        after = free[number + 1 :]
        copies = after[(similarity[number, number + 1 :] >= least) & (copy_of[after] < 0)]
        copy_of[copies] = index


def cosines(left: Float32[np.ndarray, "a d"], right: Float32[np.ndarray, "b d"]) -> Float32[np.ndarray, "a b"]:
    """Cosines of unit rows; 1 between two rows of zeros."""
    similarity = left @ right.T
    empty_left, empty_right = np.flatnonzero(~left.any(axis=1)), np.flatnonzero(~right.any(axis=1))
    similarity[np.ix_(empty_left, empty_right)] = 1
    return similarity
