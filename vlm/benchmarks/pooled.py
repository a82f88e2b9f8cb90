"""Figures of counts pooled over a data set, each with a percentile bootstrap interval."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

Row = dict[str, float]
Columns = Mapping[str, np.ndarray]
Figures = Callable[[Columns], Mapping[str, np.ndarray]]
INTERVALS = "95 % percentile bootstrap, 2000 resamples"


def pooled(
    rows: Sequence[Mapping[str, float | int]],
    figures: Figures,
    *,
    units: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """{name: value, name_ci95: [low, high]} of `figures`, which takes sums of the columns of `rows`; None where undefined.

    `units` says which rows belong together (answers about one image): they are resampled together; None is each by itself.
    The order of rows does not matter. Source: Efron and Tibshirani 1993, chapter 13.
    """
    names = [*rows[0]]
    grouped: dict[Hashable, np.ndarray] = {}
    for unit, row in zip(range(len(rows)) if units is None else units, rows, strict=True):
        grouped[unit] = grouped.get(unit, 0) + np.array([row[name] for name in names], dtype=np.float64)
    counts = np.stack([*grouped.values()])
    resampled = figures(dict(zip(names, resampled_sums(counts, seed).T, strict=True)))
    found: dict[str, Any] = {}
    for name, value in totals(rows, figures).items():
        defined = resampled[name][np.isfinite(resampled[name])]
        known = value is not None and len(defined) > 0
        found[name] = value
        found[f"{name}_ci95"] = [rounded(bound) for bound in np.quantile(defined, [0.025, 0.975])] if known else None
    return found


def totals(rows: Sequence[Mapping[str, float | int]], figures: Figures) -> dict[str, float | None]:
    """`figures` of the sums of all rows, without intervals; None where undefined."""
    sums = {name: np.array([sum(float(row[name]) for row in rows)]) for name in rows[0]}
    return {name: rounded(value[0]) for name, value in figures(sums).items()}


def resampled_sums(
    counts: Float[np.ndarray, "n k"], seed: int, resamples: int = 2000
) -> Float[np.ndarray, "resamples k"]:
    """Sums over n rows drawn with replacement; equal rows are drawn together, as how often each kind comes is multinomial."""
    kinds, often = np.unique(counts, axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(counts), often / len(counts), size=resamples)
    return drawn @ kinds


def percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """100 · part / whole, NaN where there is nothing."""
    return 100 * ratio(part, whole)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where there is nothing."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole != 0)


def rounded(value: float) -> float | None:
    """Free of the noise of floating point; None for NaN, which JSON has not."""
    return None if np.isnan(value) else round(float(value), 6)


def binary(columns: Columns, prefix: str = "") -> dict[str, np.ndarray]:
    """accuracy, precision, recall, f1 in percent of the sums n, right, said, true and both (said and true) of the positive."""
    n, right, said, true, both = (columns[prefix + name] for name in ("n", "right", "said", "true", "both"))
    return {
        "accuracy": percent(right, n),
        "precision": percent(both, said),
        "recall": percent(both, true),
        "f1": percent(2 * both, said + true),
    }


def binary_row(said: bool, true: bool, right: bool | None = None) -> Row:
    """The columns of `binary` for one answer; `right` where an answer may be neither."""
    counted = {"n": True, "right": (said == true) if right is None else right, "said": said, "true": true}
    return {name: float(value) for name, value in (counted | {"both": said and true}).items()}
