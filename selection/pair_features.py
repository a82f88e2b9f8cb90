"""What two items of a pair differ in: the features on which a Bradley-Terry head w decides, P(first wins) = σ(w·(φ_1 - φ_2))."""

import numpy as np
from jaxtyping import Float, Int

from mmrlhf.errors import UserError


def pair_differences(embeddings: Float[np.ndarray, "n d"], pairs: Int[np.ndarray, "p 2"]) -> Float[np.ndarray, "p d"]:
    """φ(first) - φ(second) of each pair, in float64 where the embeddings are, else in float32."""
    outside = pairs[(pairs < 0) | (pairs >= len(embeddings))]
    if len(outside):
        raise UserError(
            f"a pair names row {outside[0]}, allowed is 0 to {len(embeddings) - 1}: give rows of these embeddings"
        )
    wide = np.float64 if embeddings.dtype.itemsize > 4 else np.float32
    result = np.empty((len(pairs), embeddings.shape[1]), wide)
    for start in range(0, len(pairs), 8192):
        first, second = (embeddings[pairs[start : start + 8192, side]].astype(wide, copy=False) for side in (0, 1))
        result[start : start + 8192] = first - second
    return result
