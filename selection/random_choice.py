"""Rows drawn uniformly without replacement: the baseline that every selection is reported against."""

from collections.abc import Sequence

import numpy as np
import torch

from selection.choice import Choice, check_request, draw, remaining
from selection.stacked import Matrix


def random_choice(
    embeddings: Matrix, budget: int, *, already: Sequence[int] = (), generator: torch.Generator
) -> Choice:
    """`budget` rows outside `already`, all equally likely; gains are 0."""
    known = check_request(len(embeddings), budget, already)
    indices = draw(remaining(len(embeddings), known), budget, generator)
    return Choice(indices, np.zeros(budget), ["drawn at random"] * budget)
