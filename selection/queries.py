"""Examples of what is wanted, as embeddings: pictures, texts, or rows that were embedded before."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from mmrlhf.errors import UserError
from mmrlhf.images import SUFFIXES
from mmrlhf.rewards.encoders.clip import load_backbone
from selection.embed import Embedder
from selection.files import read_matrix


def embed_queries(queries: Sequence[str], model: str, embedder: Embedder | None = None) -> Float[np.ndarray, "q d"]:
    """A row a query, more for a .npy matrix: an image file by the picture half of `model`, any other text by its text half.

    `embedder` is that of `model` where there is one already. UserError for an image that is not there, or a model
    without a text half.
    """
    if not queries:
        raise UserError("similarity got no query: give --query IMAGE or --query 'a text', or write query in the recipe")
    rows = []
    for query in queries:
        kind = Path(query).suffix.lower()
        if kind == ".npy":
            rows.append(read_matrix(Path(query), "query").astype(np.float32))
        elif kind in SUFFIXES:
            if not Path(query).is_file():
                raise UserError(f"there is no image {query} to search for: give the path of a file, or a text")
            embedder = embedder or Embedder(model)
            rows.append(embedder(embedder.read(Path(query))[None]).cpu().numpy())
        else:
            rows.append(embed_text(query, model))
    widths = sorted({row.shape[1] for row in rows})
    if len(widths) > 1:
        raise UserError(
            f"queries have {widths[0]} and {widths[1]} columns, allowed is one width: embed them with one model"
        )
    return np.concatenate(rows)


@torch.no_grad()
def embed_text(text: str, model: str) -> Float[np.ndarray, "1 d"]:
    """The unit embedding of a text. UserError where the model has no text half."""
    backbone = load_backbone(model)
    if not backbone.max_tokens:
        raise UserError(f"the model {model} reads no text, and so no --query '{text:.60}': give images to search for")
    return backbone.embed_prompts([text]).float().numpy()
