"""BADGE for pairs: unsure and diverse at once, by k-means++ on the gradients of the answers expected (Ash et al. 2020)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from selection.choice import Choice, check_request
from selection.kmeans_plus_plus import kmeans_plus_plus
from selection.ranking import check_values
from selection.rows import scan


def badge(
    embeddings: Float[np.ndarray, "n d"],
    budget: int,
    *,
    already: Sequence[int] = (),
    generator: torch.Generator,
    margins: Float[np.ndarray, " m"],
) -> Choice:
    """`budget` new pairs by k-means++ on `gradient_embeddings`; pairs in `already` are the first centres.

    A row of `embeddings` is a pair's difference of features φ_1 - φ_2 (`pair_differences`); `margins`, one a pair, are the
    head's scores of the first minus the second. A gain is the distance of a gradient to the nearest one before it.
    """
    check_request(len(embeddings), budget, already)
    scan(embeddings)
    gradients = gradient_embeddings(embeddings, margins)
    choice = kmeans_plus_plus(gradients, budget, already=already, generator=generator, trials=1)
    why = [f"{reason}; margin {margins[index]:.3g}" for index, reason in zip(choice.indices, choice.why, strict=True)]
    return choice._replace(why=why)


def gradient_embeddings(
    differences: Float[np.ndarray, "n d"], margins: Float[np.ndarray, " m"]
) -> Float[np.ndarray, "n d"]:
    """(σ(m) - 1[m > 0])·(φ_1 - φ_2): the gradient at the head's weights of -log P(the answer that the head expects).

    Its length says how unsure the head is, its direction what of. The same for a pair and its swap, but for ties (m = 0),
    where either answer is expected and the second is taken. In float64 where the differences are, else in float32.
    """
    wide = torch.from_numpy(check_values("margins", margins, len(differences)))
    unsure = torch.where(wide > 0, -1.0, 1.0).double() * torch.sigmoid(-wide.abs())
    kind = np.float64 if differences.dtype.itemsize > 4 else np.float32
    return differences.astype(kind, copy=False) * unsure.numpy().astype(kind)[:, None]
