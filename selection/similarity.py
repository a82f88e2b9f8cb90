"""Rows most like given examples: the largest cosine to any of a few query embeddings."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int

from mmrlhf.errors import UserError
from selection.choice import Choice, check_request
from selection.ranking import best, products
from selection.rows import Rows


def most_similar(
    embeddings: Float[np.ndarray, "n d"],
    budget: int,
    *,
    already: Sequence[int] = (),
    generator: torch.Generator,
    queries: Float[np.ndarray, "q e"],
) -> Choice:
    """The `budget` new rows of the largest cosine to their nearest query, which is the gain; of equals the lowest row.

    Queries come from the same embedder, as examples of what is wanted (a failure seen once). Rows in `already` are passed
    over; a row of zeros has cosine 0. Nothing is drawn from `generator`.
    """
    known = check_request(len(embeddings), budget, already)
    rows = Rows(embeddings, unit=True)
    cosine, nearest = nearest_query(rows, unit_queries(queries, rows.dim))
    indices = best(cosine, budget, known)
    why = [f"cosine {cosine[index]:.4f} to query {nearest[index]}" for index in indices]
    return Choice(indices, cosine[indices], why)


def unit_queries(queries: Float[np.ndarray, "q e"], dim: int) -> Float32[np.ndarray, "q e"]:
    """Queries brought to unit length. UserError where no cosine can be taken."""
    if len(queries) == 0 or queries.shape[1] != dim:
        raise UserError(
            f"queries have shape {queries.shape[0]} x {queries.shape[1]}, allowed is at least one of {dim} columns: embed them "
            "with the model of the embeddings"
        )
    wide = queries.astype(np.float64)
    largest = np.abs(wide).max(axis=1)
    wrong = np.flatnonzero(~np.isfinite(largest) | (largest == 0))
    if len(wrong):
        raise UserError(
            f"query {wrong[0]} is zero or holds NaN or infinity: no cosine can be taken to it, leave it out"
        )
    wide /= largest[:, None]
    return (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)


def nearest_query(
    rows: Rows, queries: Float32[np.ndarray, "q d"]
) -> tuple[Float64[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """For each row of unit length the largest cosine to a query, and to which; of equals the first."""
    top, which = np.full(len(rows), -np.inf), np.zeros(len(rows), np.int64)
    for part in rows.parts():
        block = rows[part]
        for number, query in enumerate(queries):
            cosine = products(block, query)
            better = cosine > top[part]
            top[part] = np.where(better, cosine, top[part])
            which[part][better] = number
    return np.clip(top, -1, 1), which
