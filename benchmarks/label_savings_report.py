"""What `label_savings` says of its curves: the ratings that each strategy needs, next to random choice; tables and the plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib import pyplot
from sklearn.isotonic import isotonic_regression

POINTS = (20, 28, 40, 57, 80, 113, 160, 226, 320, 453, 640)  # measured; a round's ratings come in the order of choice
BEYOND = (905, 1280, 1810, 2560)  # measured for random only, so that a ratio to it exists
SHARES = (0.95, 0.98)  # of the agreement that all ratings of the pool give
SHOWN = (40, 160, 640)
RESAMPLES = 2000
STRONG = {"random": "black", "V-optimal": "crimson"}  # drawn with thick lines

Curves = dict[str, Float[np.ndarray, "seeds _"]]  # of random's, the last column is with all ratings of the pool


class Saving(NamedTuple):
    """Ratings that a strategy needs, their ratio to random's, and the ratio's 95 % interval."""

    ratings: float
    ratio: float
    low: float
    high: float


def needed(points: Sequence[int], values: Float[np.ndarray, " p"], target: float) -> float:
    """Ratings at which the rising curve nearest to these values reaches the target, on a log scale; infinite if it never does."""
    rising = isotonic_regression(values)
    at = int(np.searchsorted(rising, target))
    if at == len(rising):
        return float("inf")
    if at == 0:
        return float(points[0])
    share = (target - rising[at - 1]) / (rising[at] - rising[at - 1])
    return float(points[at - 1] * (points[at] / points[at - 1]) ** share)


def saving(curves: Curves, strategy: str, share: float) -> Saving:
    """From the mean curves over the seeds; the interval draws seeds again, the same ones for both."""
    random, other = curves["random"], curves[strategy]

    def ratings(seeds: Int[np.ndarray, " s"]) -> tuple[float, float]:
        mean = random[seeds].mean(axis=0)
        target = share * float(mean[-1])
        own = mean[:-1] if strategy == "random" else other[seeds].mean(axis=0)
        points = (*POINTS, *BEYOND)
        return needed(points[: len(own)], own, target), needed(points, mean[:-1], target)

    count = len(random)
    own, base = ratings(np.arange(count))
    generator = np.random.default_rng(0)
    drawn = (ratings(generator.integers(count, size=count)) for _ in range(RESAMPLES))
    ratios = [mine / others for mine, others in drawn if others < np.inf]
    low, high = np.quantile(ratios, [0.025, 0.975], method="nearest")
    return Saving(own, own / base, float(low), float(high))


def gain(curves: Curves, strategy: str) -> tuple[float, float, float]:
    """Agreement above random's at the same number of ratings, mean of `POINTS` and seeds, and its 95 % interval over seeds."""
    each = (curves[strategy][:, : len(POINTS)] - curves["random"][:, : len(POINTS)]).mean(axis=1)
    drawn = np.random.default_rng(0).integers(len(each), size=(RESAMPLES, len(each)))
    low, high = np.quantile(each[drawn].mean(axis=1), [0.025, 0.975])
    return float(each.mean()), float(low), float(high)


def summary(results: dict[str, Curves]) -> list[str]:
    """A row a strategy, a column a source: the gain in points of agreement; in bold those whose interval leaves out 0."""
    lines = [f"| chosen by | {' | '.join(results)} | mean |", "|---" * (len(results) + 2) + "|"]
    for strategy in names_of(results)[1:]:
        gains = [gain(curves, strategy) if strategy in curves else None for curves in results.values()]
        known = [100 * each[0] for each in gains if each is not None]
        mean = f"{np.mean(known):+.1f}" if len(known) == len(gains) else ""
        lines.append(f"| {strategy} | {' | '.join(cell(each) for each in gains)} | {mean} |")
    return lines


def names_of(results: dict[str, Curves]) -> list[str]:
    """Every strategy that was tried anywhere, random first."""
    return list(dict.fromkeys(strategy for curves in results.values() for strategy in curves))


def cell(found: tuple[float, float, float] | None) -> str:
    """A gain and its interval, in points."""
    if found is None:
        return ""
    mean, low, high = (100 * value for value in found)
    text = f"{mean:+.1f} ({low:+.1f} … {high:+.1f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def table(curves: Curves) -> list[str]:
    """A row a strategy: agreement at some numbers of ratings, and for each target the ratings needed and the ratio to random."""
    heads = ["chosen by", *(f"at {point}" for point in SHOWN)]
    heads += [text for share in SHARES for text in (f"ratings to {share:.0%}", "of random's (95 %)")]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for strategy, values in curves.items():
        cells = [strategy, *(f"{values[:, POINTS.index(point)].mean():.3f}" for point in SHOWN)]
        for share in SHARES:
            got = saving(curves, strategy, share)
            cells.append("> 640" if got.ratings == np.inf else "≤ 20" if got.ratings == 20 else f"{got.ratings:.0f}")
            interval = f"{number(got.ratio)} ({number(got.low)} … {number(got.high)})"
            cells.append("1" if strategy == "random" else interval)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def number(ratio: float) -> str:
    """Two digits, or a dash for a ratio that is beyond what was measured."""
    return f"{ratio:.2f}" if ratio < np.inf else "–"


def draw_plot(results: dict[str, Curves], titles: dict[str, str], file: Path) -> None:
    """A panel a source: mean agreement over the number of ratings; random's with its standard error."""
    matplotlib.use("Agg")
    rows = -(-len(results) // 3)
    figure, axes = pyplot.subplots(rows, min(3, len(results)), figsize=(16, 5 * rows), squeeze=False)
    others = [name for name in names_of(results) if name not in STRONG]
    colours = dict(zip(others, pyplot.get_cmap("tab20").colors, strict=False)) | STRONG  # type: ignore[attr-defined]
    for axis, (name, curves) in zip(axes.flat, results.items(), strict=False):
        draw_panel(axis, curves, colours)
        axis.set_title(titles[name])
    for axis in axes.flat[len(results) :]:
        axis.remove()
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="lower center", ncol=7)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=80)
    pyplot.close(figure)


def draw_panel(axis: pyplot.Axes, curves: Curves, colours: dict[str, Any]) -> None:
    """A source's curves, and what all ratings of its pool give, with the two targets below."""
    everything, mean = float(curves["random"][:, -1].mean()), curves["random"].mean(axis=0)[: len(POINTS)]
    for strategy, values in curves.items():
        width, own = 2.5 if strategy in STRONG else 1.0, values.mean(axis=0)[: len(POINTS)]
        axis.plot(POINTS, own, label=strategy, color=colours[strategy], lw=width, marker=".", ms=4)
    error = curves["random"].std(axis=0, ddof=1)[: len(POINTS)] / np.sqrt(len(curves["random"]))
    axis.fill_between(POINTS, mean - error, mean + error, color="black", alpha=0.12, lw=0)
    axis.axhline(everything, color="grey", lw=1)
    for share in SHARES:
        axis.axhline(share * everything, color="grey", lw=1, ls="--")
    axis.set(xscale="log", xticks=SHOWN, xticklabels=SHOWN, xlabel="ratings", ylabel="agreement on held-out pairs")
    axis.minorticks_off()
