"""Small matrices to select from, and the plain algorithms that the fast ones must agree with."""

import numpy as np
import torch


def seeded(seed: int = 0) -> torch.Generator:
    """A fresh generator."""
    return torch.Generator().manual_seed(seed)


def gaussian(rows: int, columns: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    """Independent standard normal values."""
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(dtype)


def distances(x: np.ndarray) -> np.ndarray:
    """All pairwise Euclidean distances, term by term in float64."""
    wide = x.astype(np.float64)
    return np.sqrt(((wide[:, None] - wide[None]) ** 2).sum(axis=2))


def plain_greedy(x: np.ndarray, budget: int, chosen: list[int]) -> list[int]:
    """The textbook k-center greedy after `chosen`: the farthest free row, of equals the lowest number."""
    wide, picks = x.astype(np.float64), list(chosen)
    near = np.full(len(x), np.inf)
    for pick in picks:
        near = np.minimum(near, ((wide - wide[pick]) ** 2).sum(axis=1))
    while len(picks) < len(chosen) + budget:
        near[picks] = -1
        picks.append(int(near.argmax()))
        near = np.minimum(near, ((wide - wide[picks[-1]]) ** 2).sum(axis=1))
    return picks[len(chosen) :]


def cosines(x: np.ndarray) -> np.ndarray:
    """(1 + cosine)/2 between all rows."""
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)
    return (1 + unit @ unit.T) / 2
