"""V-optimal design: the pairs whose answers leave a Bradley-Terry head least unsure about all pairs, not about its weights."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from tqdm import tqdm

from mmrlhf.errors import UserError
from selection.choice import Choice, check_request
from selection.d_optimal import Design, highest
from selection.groups import Limit
from selection.ranking import all_products, check_values


def v_optimal(
    embeddings: Float[np.ndarray, "n d"],
    budget: int,
    *,
    already: Sequence[int] = (),
    generator: torch.Generator,
    margins: Float[np.ndarray, " m"] | None = None,
    ridge: float = 1.0,
    limit: Limit | None = None,
) -> Choice:
    """`budget` new pairs that greedily lower the mean over all pairs of p(1-p)·zᵀA⁻¹z the most; gains are those falls.

    z, p, A, `margins`, `ridge`, `limit` and `already` are those of `d_optimal`; half of p(1-p)·zᵀA⁻¹z is about the
    information, in nats, that a pair's answer still has. So a pair counts by what it tells of the others, and an outlier that
    is like none tells little, though it raises log det A as much as any. Of equals the lowest row number; nothing is drawn
    from `generator`. Variance reduction (Cohn, Ghahramani and Jordan 1996) over the pool: transductive design (Yu, Bi and
    Tresp 2006) with a logistic head's weights.

    With rows u = √(p(1-p))·z, M = mean of uuᵀ and B = A⁻¹, a pick lowers the mean, tr BM, by uᵀBMBu/(1 + uᵀBu). Two passes
    over the rows a pick.
    """
    known = check_request(len(embeddings), budget, already)
    if not 0 < ridge < np.inf:
        raise UserError(f"got ridge {ridge}, allowed is above 0")
    given = np.zeros(len(embeddings)) if margins is None else check_values("margins", margins, len(embeddings))
    forecast = Forecast(Design(embeddings, torch.from_numpy(given), ridge))
    for asked in known:
        forecast.ask(asked)
    indices: list[int] = []
    gains: list[float] = []
    why: list[str] = []
    for left in tqdm(range(budget, 0, -1), desc="V-optimal", disable=None, delay=2):
        falls = forecast.falls()
        index = highest(falls, [*known, *indices], limit, left)
        if index is None:
            break
        before = forecast.mean()
        indices.append(index)
        gains.append(float(falls[index]))
        chance = forecast.design.chance[index]
        why.append(f"lowers the mean doubt by {gains[-1] / (before or 1):.2%}, chance of the first {chance:.2f}")
        forecast.ask(index)
    return Choice(np.array(indices, dtype=np.int64), np.array(gains), why)


class Forecast:
    """A design, M = mean of uuᵀ over its rows, and uᵀBMBu of every row: how far an answer to it would carry."""

    def __init__(self, design: Design):
        self.design = design
        dim = design.rows.dim
        self.spread, self.reach = np.zeros((dim, dim)), np.empty(len(design.size))
        for part in design.rows.parts():
            weighted = self.weighted(part)
            self.spread += weighted.T @ weighted / len(design.size)
        carried = design.inverse @ self.spread @ design.inverse
        for part in design.rows.parts(1024):
            weighted = self.weighted(part)
            # summed row by row, so that a copy of a row gets exactly what the row gets
            self.reach[part] = np.einsum("ij,jk,ik->i", weighted, carried, weighted)

    def weighted(self, part: slice) -> Float64[np.ndarray, "b d"]:
        """u of some rows."""
        return self.design.rows[part].astype(np.float64) * self.design.size[part, None]

    def mean(self) -> float:
        """tr BM: the mean of uᵀBu over all rows."""
        return float((self.design.inverse * self.spread).sum())

    def falls(self) -> Float64[np.ndarray, " n"]:
        """By how much an answer to each row would lower `mean`."""
        return self.reach / (1 + self.design.leverage)

    def ask(self, index: int) -> None:
        """Count a pair as asked: B falls by ssᵀ/c, s = Bu, c = 1 + uᵀBu, and so B·u of every other row by s(s·u)/c."""
        design = self.design
        row = design.rows[np.array([index])][0].astype(np.float64) * design.size[index]
        step = design.inverse @ row
        share = design.size * all_products(design.rows, step) / (1 + float(row @ step))
        cross = design.size * all_products(design.rows, design.inverse @ (self.spread @ step))
        self.reach = np.maximum(self.reach - 2 * share * cross + share**2 * float(step @ self.spread @ step), 0)
        design.ask(index)
