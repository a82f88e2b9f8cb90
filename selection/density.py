"""Information density: uncertain rows that are like many others, not outliers (Settles & Craven 2008)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64

from mmrlhf.errors import UserError
from selection.choice import Choice, check_request
from selection.ranking import all_products, best, check_values
from selection.rows import Rows


def information_density(
    embeddings: Float[np.ndarray, "n d"],
    budget: int,
    *,
    already: Sequence[int] = (),
    generator: torch.Generator,
    uncertainty: Float[np.ndarray, " u"] | None = None,
    beta: float = 1.0,
) -> Choice:
    """The `budget` new rows of the highest uncertainty × (mean similarity to all rows)^`beta`, which is the gain.

    `uncertainty` ≥ 0, one a row, is 1 where it is not given. Similarity is (1 + cosine)/2; `beta` 0 leaves uncertainty
    alone, a larger one holds off outliers. Rows are ranked once, so that alike rows may all be chosen: rows in `already`
    are passed over and change nothing else. Of equals the lowest row number; nothing is drawn from `generator`.
    """
    known = check_request(len(embeddings), budget, already)
    if not 0 <= beta < np.inf:
        raise UserError(f"got beta {beta}, allowed is 0 (uncertainty alone) or more")
    rows = Rows(embeddings, unit=True)
    doubt = np.ones(len(rows)) if uncertainty is None else check_values("uncertainty", uncertainty, len(rows), 0.0)
    similarity = mean_similarity(rows)
    scores = doubt * similarity**beta
    indices = best(scores, budget, known)
    why = [f"uncertainty {doubt[index]:.4g}, mean similarity {similarity[index]:.4g}" for index in indices]
    return Choice(indices, scores[indices], why)


def mean_similarity(rows: Rows) -> Float64[np.ndarray, " n"]:
    """Mean of (1 + cosine)/2 of each row of unit length to all rows, itself included: its product with their mean."""
    total = sum((rows[part].sum(axis=0, dtype=np.float64) for part in rows.parts()), np.zeros(rows.dim))
    return np.maximum((1 + all_products(rows, (total / len(rows)).astype(np.float32))) / 2, 0)
