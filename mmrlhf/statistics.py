"""Intervals for measured figures."""

import numpy as np

from mmrlhf.errors import UserError

BLOCK_ENTRIES = 4_000_000  # resampled indices held at a time: 32 MB


def bootstrap_ci(
    values: np.ndarray, *, seed: int = 0, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (one entry an independent unit, e.g. a prompt).

    The same for the same seed. UserError where there is no value, one that is not finite, or a `level` outside (0, 1).
    Source: Efron and Tibshirani 1993, chapter 13.
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    if values.size == 0 or not np.isfinite(values).all():
        problem = "no value" if values.size == 0 else f"{int((~np.isfinite(values)).sum())} values that are not finite"
        raise UserError(f"a bootstrap interval got {problem}: give at least one finite number, leaving out abstentions")
    if not 0 < level < 1:
        raise UserError(f"a bootstrap interval got level {level}, allowed is between 0 and 1: write 0.95 for 95 %")
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, BLOCK_ENTRIES // values.size)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        means[start : start + rows] = values[generator.integers(values.size, size=(rows, values.size))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
