"""Rows in the order of one number each; sums in which a copy of a row gets exactly what the row gets."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, Shaped

from mmrlhf.errors import UserError
from selection.choice import remaining
from selection.rows import Rows


def best(scores: Float64[np.ndarray, " n"], budget: int, known: Sequence[int]) -> Int[np.ndarray, " k"]:
    """The `budget` rows outside `known` of the highest scores, highest first, of equals the lowest row number."""
    free = remaining(len(scores), known)
    return free[np.argsort(-scores[free], kind="stable")[:budget]]


def check_values(
    name: str, values: Shaped[np.ndarray, " m"], count: int, lowest: float = -np.inf
) -> Float64[np.ndarray, " m"]:
    """`values` in float64. UserError unless there is one a row, each finite and at least `lowest`."""
    if len(values) != count:
        raise UserError(f"got {len(values)} values of {name} for {count} rows, allowed is one a row")
    wide = np.asarray(values, dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(wide) | (wide < lowest))
    if len(wrong):
        allowed = "any finite number" if lowest == -np.inf else f"{lowest:g} or more, and finite"
        raise UserError(f"{name} of row {wrong[0]} is {wide[wrong[0]]:g}, allowed is {allowed}: leave that row out")
    return wide


def products(rows: Float32[np.ndarray, "b d"], vector: Float[np.ndarray, " d"]) -> Float[np.ndarray, " b"]:
    """Scalar products, summed in the type of `vector`, each row in the same order: BLAS would tear ties of copies apart."""
    return np.einsum("ij,j->i", rows, vector, dtype=vector.dtype)


def all_products(rows: Rows, vector: Float[np.ndarray, " d"]) -> Float64[np.ndarray, " n"]:
    """`products` with every row, read in blocks."""
    return np.concatenate([products(rows[part], vector) for part in rows.parts()]).astype(np.float64)


def draw_proportional(weights: Float64[np.ndarray, " n"], generator: torch.Generator) -> int:
    """A row number drawn with chances proportional to `weights`, of which one must be above 0; never one of weight 0."""
    return int(draw_several(weights, 1, generator)[0])


def draw_several(weights: Float64[np.ndarray, " n"], amount: int, generator: torch.Generator) -> Int[np.ndarray, " k"]:
    """`amount` row numbers drawn one by one like that; one may come again."""
    upto = np.cumsum(weights)
    points = torch.rand(amount, generator=generator, dtype=torch.double).numpy() * upto[-1]
    at = np.searchsorted(upto, points, side="right")
    if at.max() == len(weights):  # a product was rounded up to the total
        at[at == len(weights)] = np.flatnonzero(weights)[-1]
    return at
