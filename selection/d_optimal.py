"""D-optimal design: the pairs whose answers, together, narrow a Bradley-Terry head down the most (greedy log determinant)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from tqdm import tqdm

from mmrlhf.errors import UserError
from selection.choice import Choice, check_request
from selection.groups import Limit
from selection.ranking import all_products, check_values
from selection.rows import Rows


def d_optimal(
    embeddings: Float[np.ndarray, "n d"],
    budget: int,
    *,
    already: Sequence[int] = (),
    generator: torch.Generator,
    margins: Float[np.ndarray, " m"] | None = None,
    ridge: float = 1.0,
    limit: Limit | None = None,
) -> Choice:
    """`budget` new pairs that greedily raise log det A, A = prior + Σ p(1-p)·zzᵀ over the pairs asked; gains are the rises.

    A row z of `embeddings` is a pair's difference of features φ_1 - φ_2 (`pair_differences`); z and -z count the same. A is
    the precision, at the present weights, of the weights w of a head P(first wins) = p = σ(w·z) (Laplace), and half a
    gain is the information of an answer in nats. `margins` are w·z, one a pair; without, p = ½. The prior precision is
    `ridge` times what a pair gives to a direction on average, mean of p(1-p)|z|²/d, so that scaling changes nothing.
    Pairs in `already` are in A. `limit` is a further rule, which may end the choice before the budget. Of equals the lowest
    row number; nothing is drawn from `generator`. Greedy reaches at least 1 - 1/e of the best rise (it is submodular).

    With B = A⁻¹, a pick z of weight v = p(1-p) gains log(1 + v·zᵀBz) and takes v·(Bz)(Bz)ᵀ/(1 + v·zᵀBz) off B (Sherman &
    Morrison 1950), so that every row's own vᵢ·zᵢᵀBzᵢ falls by one product with it. One pass over the rows a pick.
    """
    known = check_request(len(embeddings), budget, already)
    if not 0 < ridge < np.inf:
        raise UserError(f"got ridge {ridge}, allowed is above 0")
    given = np.zeros(len(embeddings)) if margins is None else check_values("margins", margins, len(embeddings))
    design = Design(embeddings, torch.from_numpy(given), ridge)
    for asked in known:
        design.ask(asked)
    indices: list[int] = []
    gains: list[float] = []
    why: list[str] = []
    for left in tqdm(range(budget, 0, -1), desc="D-optimal", disable=None, delay=2):
        index = highest(design.leverage, [*known, *indices], limit, left)
        if index is None:
            break
        gains.append(design.ask(index))
        indices.append(index)
        why.append(f"raises the log determinant by {gains[-1]:.4g}, chance of the first {design.chance[index]:.2f}")
    return Choice(np.array(indices, dtype=np.int64), np.array(gains), why)


def highest(values: Float64[np.ndarray, " n"], taken: Sequence[int], limit: Limit | None, left: int) -> int | None:
    """The new row of the largest value ≥ 0 that the limit allows, which then counts it; None where there is no such row."""
    still = values.copy()
    still[taken] = -1
    if limit is not None:
        still[~limit.allows(left)] = -1
    index = int(still.argmax())
    if still[index] < 0:
        return None
    if limit is not None:
        limit.take(index)
    return index


class Design:
    """The pairs asked: the inverse of their information on the weights, and how much each other pair would add to it.

    Rows are held as unit vectors and `size`, √(p(1-p))·|z| over its largest: a common factor changes nothing.
    """

    def __init__(self, embeddings: Float[np.ndarray, "n d"], margins: Float[Tensor, " n"], ridge: float):
        self.rows, self.chance = Rows(embeddings, unit=True), torch.sigmoid(margins).numpy()
        parts = list(self.rows.parts(1024))
        lengths = np.concatenate([np.linalg.norm(self.rows.raw(part), axis=1) for part in parts])
        size = np.sqrt(self.chance * torch.sigmoid(-margins).numpy()) * lengths  # 1 - p would round to 0
        self.size = size / (size.max() or 1.0)
        prior = ridge * (float((self.size**2).mean()) / self.rows.dim or 1.0)
        self.inverse = np.eye(self.rows.dim) / prior
        rounded = np.concatenate([(self.rows[part].astype(np.float64) ** 2).sum(axis=1) for part in parts])
        self.leverage = self.size**2 * rounded / prior  # of the float32 rows, as all that is taken off later

    def ask(self, index: int) -> float:
        """Count a pair as asked; by how much that raised the log determinant."""
        row = self.rows[np.array([index])][0].astype(np.float64)
        step = self.inverse @ row * self.size[index]
        growth = max(0.0, float(row @ step) * float(self.size[index]))
        self.inverse -= np.outer(step, step) / (1 + growth)
        fall = (self.size * all_products(self.rows, step)) ** 2 / (1 + growth)
        self.leverage = np.maximum(self.leverage - fall, 0)
        return float(np.log1p(growth))
