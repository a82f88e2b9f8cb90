"""k-means++: rows drawn by their squared distance to those before (D² sampling, Arthur & Vassilvitskii 2007)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from tqdm import tqdm

from mmrlhf.errors import UserError
from selection.choice import Choice, check_request, draw, remaining
from selection.ranking import draw_several
from selection.rows import Rows, squared_norms


def kmeans_plus_plus(
    embeddings: Float[np.ndarray, "n d"],
    budget: int,
    *,
    already: Sequence[int] = (),
    generator: torch.Generator,
    trials: int | None = None,
) -> Choice:
    """`budget` new rows, each drawn with chances proportional to D², the squared distance to the nearest row before it.

    Of `trials` rows drawn so, 2 + ⌊log budget⌋ without, the one that lowers the summed D² over all rows the most is taken
    (greedy k-means++, Arthur's thesis; what scikit-learn does). With 1 it is plain D² sampling, and the sum in expectation
    at most 8(ln k + 2) times the best of any k centres (Theorem 1.1); with more it is lower in practice.

    Rows in `already` are the first centres; without any, the first row is drawn uniformly. Between k-center, which runs
    after outliers, and a uniform draw. The gain of a row is its distance to the nearest row before it (0 for the first);
    when nothing but copies of chosen rows is left, they are drawn uniformly. One pass over the rows a pick; memory is the
    float32 rows (see `Rows`) and `trials` + 4 numbers a row.
    """
    known = check_request(len(embeddings), budget, already)
    trials = 2 + int(np.log(budget)) if trials is None else trials
    if trials < 1:
        raise UserError(f"got {trials} trials, allowed is 1 or more")
    rows = Rows(embeddings)
    near = np.full(len(rows), np.inf)
    contest = Contest(rows)
    for index in known:
        lower(near, rows, index)
    indices: list[int] = []
    gains: list[float] = []
    why: list[str] = []
    for _ in tqdm(range(budget), desc="k-means++", disable=None, delay=2):
        index, gain = 0, 0.0
        if (known or indices) and near.any():
            index, gain = contest.take_best(near, draw_several(near, trials, generator))
        else:
            free = remaining(len(rows), [*known, *indices])
            index = int(draw(free, 1, generator)[0]) if known or indices else first(len(rows), generator)
            lower(near, rows, index)
        gain /= rows.scale
        why.append(f"drawn, {gain:.4g} away from the nearest row chosen before" if known or indices else "start: drawn")
        indices.append(index)
        gains.append(gain)
    return Choice(np.array(indices), np.array(gains), why)


def first(count: int, generator: torch.Generator) -> int:
    """A row number drawn uniformly."""
    return int(torch.randint(count, (1,), generator=generator))


def lower(near: Float64[np.ndarray, " n"], rows: Rows, index: int) -> None:
    """Take a new centre into the squared distances, term by term: exactly 0 for its copies, which are then never drawn."""
    centre = rows[np.array([index])]
    for part in rows.parts(512):  # small enough to stay in the processor's cache
        difference = rows[part] - centre
        near[part] = np.minimum(near[part], np.einsum("ij,ij->i", difference, difference))


class Contest:
    """Which of several rows lowers the sum of squared distances the most, by one matrix product for all of them."""

    def __init__(self, rows: Rows):
        self.rows = rows
        self.norms = np.concatenate([squared_norms(rows[part]) for part in rows.parts()])
        self.rounding = np.float32((rows.dim / 2 + 8) * 2.0**-23)  # of |x|² + |y|² - 2xy, for each of |x|² + |y|²

    def take_best(self, near: Float64[np.ndarray, " n"], drawn: Int[np.ndarray, " k"]) -> tuple[int, float]:
        """(the best row, its distance before); `near` is lowered by it, only where the product leaves that possible."""
        drawn = np.unique(drawn)
        centres, norms = -2 * self.rows[drawn], self.norms[drawn, None]
        products = np.empty((len(drawn), len(near)), np.float32)  # |y|² - 2xy
        known = (near - self.norms).astype(np.float32)  # what it must be below
        sums = np.zeros(len(drawn))
        for part in self.rows.parts(2048):  # small enough to stay in the processor's cache
            products[:, part] = (self.rows[part] @ centres.T).T  # faster than the other way round
            products[:, part] += norms
            if len(drawn) > 1:
                sums += np.minimum(products[:, part], known[part]).sum(axis=1)
        best = int(sums.argmin())
        index = int(drawn[best])
        gain = float(np.sqrt(near[index]))
        slack = self.rounding * (self.norms + self.norms[index])
        self.lower(near, index, np.flatnonzero(products[best] - slack < known))
        return index, gain

    def lower(self, near: Float64[np.ndarray, " n"], index: int, some: Int[np.ndarray, " s"]) -> None:
        """Take a centre into the squared distances of some rows, term by term, as `lower` does with all."""
        centre = self.rows[np.array([index])]
        for start in range(0, len(some), 512):
            part = some[start : start + 512]
            difference = self.rows[part] - centre
            near[part] = np.minimum(near[part], np.einsum("ij,ij->i", difference, difference))
