"""k-means++: rows drawn by their squared distance to those before (D² sampling, Arthur & Vassilvitskii 2007)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from tqdm import tqdm

from selection.choice import Choice, check_request, draw, remaining
from selection.ranking import draw_proportional
from selection.rows import Rows


def kmeans_plus_plus(
    embeddings: Float[np.ndarray, "n d"], budget: int, *, already: Sequence[int] = (), generator: torch.Generator
) -> Choice:
    """`budget` new rows, each drawn with chances proportional to D², the squared distance to the nearest row before it.

    Rows in `already` are the first centres; without any, the first row is drawn uniformly. Plain D² sampling, one draw a
    row, so that the summed D² over all rows is, in expectation, at most 8(ln k + 2) times the best of any k centres
    (Theorem 1.1). Between k-center, which runs after outliers, and a uniform draw. The gain of a row is its distance to
    the nearest row before it (0 for the first); when nothing but copies of chosen rows is left, they are drawn uniformly.
    One pass over the rows a pick; memory is the float32 rows (see `Rows`) and one number a row.
    """
    known = check_request(len(embeddings), budget, already)
    rows = Rows(embeddings)
    near = np.full(len(rows), np.inf)
    for index in known:
        lower(near, rows, index)
    indices: list[int] = []
    gains: list[float] = []
    why: list[str] = []
    for _ in tqdm(range(budget), desc="k-means++", disable=None, delay=2):
        if not known and not indices:
            index, gain = int(torch.randint(len(rows), (1,), generator=generator)), 0.0
        elif near.any():
            index = draw_proportional(near, generator)
            gain = float(np.sqrt(near[index])) / rows.scale
        else:
            index, gain = int(draw(remaining(len(rows), [*known, *indices]), 1, generator)[0]), 0.0
        why.append(f"drawn, {gain:.4g} away from the nearest row chosen before" if known or indices else "start: drawn")
        indices.append(index)
        gains.append(gain)
        lower(near, rows, index)
    return Choice(np.array(indices), np.array(gains), why)


def lower(near: Float64[np.ndarray, " n"], rows: Rows, index: int) -> None:
    """Take a new centre into the squared distances, term by term: exactly 0 for its copies, which are then never drawn."""
    centre = rows[np.array([index])]
    for part in rows.parts(512):  # small enough to stay in the processor's cache
        difference = rows[part] - centre
        near[part] = np.minimum(near[part], np.einsum("ij,ij->i", difference, difference))
