"""How far raters agree with each other, and a scorer with them."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from mmrlhf.errors import UserError
from mmrlhf.types import Preference

Labels = np.ndarray | Sequence[float | int] | float | int


class PairOfRaters(NamedTuple):
    """The agreement of two raters on the `pairs` that both judged; `kappa` is Cohen's, NaN where undefined."""

    rater_0: str
    rater_1: str
    agreement: float
    kappa: float
    pairs: int


def pair_agreement(a: Labels, b: Labels) -> np.ndarray | np.floating:
    """Credit of each pair: 1 where both labels name the same outcome, 1/2 where exactly one is a tie, else 0.

    Labels are the weight of the first item in [0, 1]; 0.5 is a tie, others count by their side of it. The rule by which
    PickScore is evaluated (Kirstain et al. 2023). NaN where a label is NaN.
    """
    outcome_a, outcome_b = np.sign(np.asarray(a, dtype=float) - 0.5), np.sign(np.asarray(b, dtype=float) - 0.5)
    return 1 - np.abs(outcome_a - outcome_b) / 2  # outcomes are -1, 0, 1: apart by 0, 1 or 2


def rater_agreement(preferences: Iterable[Preference]) -> tuple[float, list[PairOfRaters]]:
    """(mean credit over every two raters' shared pairs, one row for each two raters who share any).

    A pair is two items for one prompt, in either order; a rater's last answer to it counts. NaN where nothing is shared.
    """
    labels: dict[str, dict[tuple[str, ...], float]] = {}
    for p in preferences:
        first, second = sorted(p.items)
        labels.setdefault(p.annotator, {})[p.prompt, first, second] = p.label if p.items[0] == first else 1 - p.label
    rows, credits = [], []
    for name_0, name_1 in combinations(sorted(labels), 2):
        shared = [key for key in labels[name_0] if key in labels[name_1]]
        if not shared:
            continue
        a, b = (np.array([labels[name][key] for key in shared]) for name in (name_0, name_1))
        credit = np.atleast_1d(pair_agreement(a, b))
        kappa = cohen_kappa(np.sign(a - 0.5), np.sign(b - 0.5))
        rows.append(PairOfRaters(name_0, name_1, float(credit.mean()), kappa, len(shared)))
        credits.append(credit)
    return (float(np.concatenate(credits).mean()) if credits else float("nan")), rows


def cohen_kappa(a: Shaped[np.ndarray, " units"], b: Shaped[np.ndarray, " units"]) -> float:
    """Cohen 1960: agreement of two raters over categories, beyond chance. NaN where both always give one category."""
    values, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
    table = np.zeros((len(values), len(values)))
    np.add.at(table, (codes[: len(a)], codes[len(a) :]), 1)
    if not len(a):
        return float("nan")
    table /= table.sum()
    return beyond_chance(np.trace(table), table.sum(axis=0) @ table.sum(axis=1))


def fleiss_kappa(counts: Shaped[np.ndarray, "units categories"]) -> float:
    """Fleiss 1971: how many raters put each unit in each category, the same number of raters (2 or more) for every unit."""
    counts = np.asarray(counts, dtype=float)
    raters = counts.sum(axis=1)
    if not len(counts) or (raters != raters[0]).any() or raters[0] < 2:
        raise UserError(
            f"fleiss_kappa got {sorted(set(raters))} ratings a unit, allowed is one number of 2 or more for all: "
            "use krippendorff_alpha where ratings are missing"
        )
    observed = ((counts**2).sum(axis=1) - raters) / (raters * (raters - 1))
    shares = counts.sum(axis=0) / counts.sum()
    return beyond_chance(observed.mean(), shares @ shares)


def pairwise_agreement(ratings: Float[np.ndarray, "raters units"]) -> float:
    """Share of pairs of raters who gave a unit the same rating, the mean over units with two or more (NaN entries are missing).

    The observed agreement of Fleiss 1971. NaN where no unit has two ratings.
    """
    shares = []
    for column in ratings.T:
        unit = column[~np.isnan(column)]
        if len(unit) >= 2:
            _, counts = np.unique(unit, return_counts=True)
            shares.append((counts * (counts - 1)).sum() / (len(unit) * (len(unit) - 1)))
    return float(np.mean(shares)) if shares else float("nan")


def krippendorff_alpha(
    ratings: Float[np.ndarray, "raters units"], level: Literal["nominal", "ordinal", "interval"] = "nominal"
) -> float:
    """Krippendorff 2011: 1 - observed / expected disagreement; NaN entries are missing, units with one rating are left out.

    NaN where every rating is the same, or no unit has two: there is then nothing to disagree about.
    """
    if level not in ("nominal", "ordinal", "interval"):
        raise UserError(f"krippendorff_alpha got level '{level}', allowed are nominal, ordinal, interval")
    units = [column[~np.isnan(column)] for column in ratings.T]
    units = [unit for unit in units if len(unit) >= 2]
    if not units:
        return float("nan")
    pooled = np.concatenate(units)
    if level == "ordinal":  # its distance counts the ratings between two, which is how far their mean ranks are apart
        _, codes, counts = np.unique(pooled, return_inverse=True, return_counts=True)
        pooled = (np.cumsum(counts) - (counts - 1) / 2)[codes]
        units = np.split(pooled, np.cumsum([len(unit) for unit in units])[:-1])
    if pooled.min() == pooled.max():
        return float("nan")
    expected = disagreement(pooled, level) / (len(pooled) - 1)
    observed = sum(disagreement(unit, level) / (len(unit) - 1) for unit in units)
    return float(1 - observed / expected)


def disagreement(values: Float[np.ndarray, " n"], level: str) -> float:
    """Sum over all ordered pairs of values of their distance: 1 if they differ, or the squared difference."""
    if level == "nominal":
        _, counts = np.unique(values, return_counts=True)
        return float(len(values) ** 2 - (counts.astype(float) ** 2).sum())
    return float(2 * len(values) * ((values - values.mean()) ** 2).sum())


def beyond_chance(observed: float | np.floating, expected: float | np.floating) -> float:
    """(observed - expected) / (1 - expected), NaN where chance alone agrees always."""
    return float((observed - expected) / (1 - expected)) if expected < 1 else float("nan")
