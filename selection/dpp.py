"""Determinantal point process: the rows that together span the largest volume, found greedily (Chen, Zhang & Zhou 2018)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from tqdm import tqdm

from mmrlhf.errors import UserError
from selection.choice import Choice, check_request
from selection.density import mean_similarity
from selection.ranking import all_products, check_values
from selection.rows import Rows

SMALLEST_QUALITY = 1e-300


def dpp(
    embeddings: Float[np.ndarray, "n d"],
    budget: int,
    *,
    already: Sequence[int] = (),
    generator: torch.Generator,
    quality: Float[np.ndarray, " q"] | None = None,
    density_weight: float = 0.0,
    ridge: float = 1e-3,
) -> Choice:
    """`budget` new rows that greedily raise log det L of the chosen, L_ij = q_i·S_ij·q_j; the gains are those rises.

    S = (1 + cosine)/2 + `ridge` on the diagonal, so that a determinant tells sets apart that are larger than the rank of
    the embeddings. q > 0 is `quality`, one a row (1), times (mean similarity to all rows)^`density_weight`: with either,
    good or common rows win over merely different ones. Rows in `already` count as chosen. Of equals the lowest row
    number, which without quality also makes row 0 the first; nothing is drawn from `generator`.

    Algorithm 1 of the paper: the Cholesky factor of L grows by a row a pick. As S is a matrix of products of features,
    so is each new column of the factor, and one direction of d + 1 numbers is kept for it instead of n. One pass over
    the rows a pick; memory is the float32 rows (see `Rows`), d + 1 numbers a pick and a few a row.
    """
    known = check_request(len(embeddings), budget, already)
    if not 0 < ridge < np.inf or not 0 <= density_weight < np.inf:
        raise UserError(
            f"got ridge {ridge} and density_weight {density_weight}, allowed is above 0 for the first, 0 or more for the other"
        )
    rows = Rows(embeddings, unit=True)
    log_quality = np.zeros(len(rows))
    if quality is not None:
        log_quality += np.log(check_values("quality", quality, len(rows), SMALLEST_QUALITY))
    if density_weight:
        log_quality += density_weight * np.log(np.maximum(mean_similarity(rows), SMALLEST_QUALITY))
    factor = Factor(rows, ridge, len(known) + budget)
    for index in known:
        factor.add(index)
    indices: list[int] = []
    gains: list[float] = []
    why: list[str] = []
    for _ in tqdm(range(budget), desc="DPP", disable=None, delay=2):
        score = np.log(factor.residual) + 2 * log_quality
        score[[*known, *indices]] = -np.inf
        index = int(score.argmax())
        residual = factor.add(index)
        indices.append(index)
        gains.append(float(np.log(residual) + 2 * log_quality[index]))
        why.append(
            f"{residual / (1 + ridge):.1%} new to the rows before, raises the log determinant by {gains[-1]:.4g}"
        )
    return Choice(np.array(indices), np.array(gains), why)


class Factor:
    """Cholesky factor of S on the chosen rows, and how much of every row it leaves unexplained (d² in the paper).

    With features v = (1, x)/√2 of unit rows x, S_ij = v_i·v_j for i ≠ j. Then entry (i, s) of the factor is v_i·w_s for
    the direction w_s = (v_j - Σ_{r<s} (v_j·w_r)·w_r)/d_j of the s-th pick j, since v_i·(that) is the paper's e_i.
    """

    def __init__(self, rows: Rows, ridge: float, capacity: int):
        self.rows, self.ridge = rows, ridge
        self.directions = np.empty((capacity, rows.dim + 1))
        self.count = 0
        present = np.concatenate([rows[part].any(axis=1) for part in rows.parts()])
        self.residual = np.where(present, 1.0, 0.5) + ridge  # a row of zeros has cosine 0, also to itself

    def feature(self, index: int) -> Float64[np.ndarray, " e"]:
        """(1, x)/√2 in float64."""
        row = self.rows[np.array([index])][0].astype(np.float64)
        return np.concatenate([[1.0], row / (np.linalg.norm(row) or 1.0)]) / np.sqrt(2)

    def add(self, index: int) -> float:
        """Count a row as chosen; what the rows before left unexplained of it, in float64."""
        feature = self.feature(index)
        before = self.directions[: self.count]
        entries = before @ feature
        left = max(self.ridge, float(feature @ feature) + self.ridge - float(entries @ entries))
        direction = (feature - entries @ before) / np.sqrt(left)
        column = (direction[0] + all_products(self.rows, direction[1:].astype(np.float32))) / np.sqrt(2)
        self.residual = np.maximum(self.residual - column**2, self.ridge)
        self.directions[self.count] = direction
        self.count += 1
        return left
