"""Which figures of which runs share a chart, and what the chart says."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from apps.dashboard_plots import DASHES, Box, Line, box_chart, figure, line_chart
from apps.dashboard_reports import QUANTILES, Scores
from apps.dashboard_runs import Point, Run, Series

# a chart's title -> the figures in it, those that are there
MAIN = {
    "loss": ("loss", "validation_loss", "held_out_loss"),
    "learned reward": ("reward_mean",),
    "KL to the start, nats": ("kl",),
    "clip fraction": ("clip_fraction",),
    "agreement": ("agreement", "held_out_agreement", "implicit_accuracy", "validation_implicit_accuracy"),
}
HELD_OUT_REWARD = re.compile(r"gold_(mean|reward\w*)|(held_out|validation|eval)_(gold|reward|score)(_mean)?")
MOST_BANDS = 3  # more of them hide each other
MOST_BOXES = 16
SHOWN_WITHOUT_MAIN = 6


class Key(NamedTuple):
    """What a dash pattern stands for."""

    label: str
    dash: str


class Chart(NamedTuple):
    """A chart, the meaning of its dash patterns where there are several, and a note."""

    title: str
    svg: Markup
    keys: tuple[Key, ...] = ()
    says: str = ""


def usual_charts(runs: Sequence[Run], colours: Mapping[str, int], smooth: float) -> list[Chart]:
    """The usual charts that these runs have figures for."""
    drawn = (metric_chart(title, names, runs, colours, smooth) for title, names in main_figures(runs).items())
    return [chart for chart in drawn if chart is not None]


def other_charts(runs: Sequence[Run], colours: Mapping[str, int], names: Sequence[str], smooth: float) -> list[Chart]:
    """A chart for each of these figures that the runs have."""
    drawn = (metric_chart(name, (name,), runs, colours, smooth) for name in names)
    return [chart for chart in drawn if chart is not None]


def main_figures(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    """The usual charts' titles and figures; held-out rewards have many names."""
    held_out = {name for run in runs for name in run.metrics() if HELD_OUT_REWARD.fullmatch(name)}
    loss, reward, *others = MAIN.items()
    return dict((loss, reward, ("held-out reward", tuple(sorted(held_out))), *others))


def other_figures(runs: Sequence[Run]) -> list[str]:
    """The names of all figures that the usual charts leave out."""
    usual = {name for names in main_figures(runs).values() for name in names}
    return sorted({name for run in runs for name in run.metrics()} - usual)


def shown_at_first(runs: Sequence[Run]) -> list[str]:
    """The other figures worth a chart before anybody asks: those of runs that the usual charts show nothing of."""
    usual = {name for names in main_figures(runs).values() for name in names}
    found: dict[str, None] = {}
    for run in runs:
        names = run.metrics()
        if not usual.intersection(names):
            sure = {series.name for series in run.series if any(point.low is not None for point in series.points)}
            order = sorted((name for name in names if name != "seconds"), key=lambda name: name not in sure)
            found |= dict.fromkeys(order[:SHOWN_WITHOUT_MAIN])
    return list(found)


def metric_chart(
    title: str, names: Sequence[str], runs: Sequence[Run], colours: Mapping[str, int], smooth: float
) -> Chart | None:
    """The figures of all runs over their steps: a colour a run, a dash pattern a figure. None where no run has one."""
    found = [(run, series) for run in runs for name in names for series in run.named(name)]
    if not found:
        return None
    kinds = list(dict.fromkeys(kind_of(series) for _, series in found))
    banded = len(found) <= MOST_BANDS and smooth == 0
    lines = [
        line
        for run, series in found
        for line in lines_of(run, series, colours[run.name], kinds.index(kind_of(series)), smooth, banded)
    ]
    keys = tuple(Key(kind, DASHES[place % len(DASHES)] or "none") for place, kind in enumerate(kinds))
    plain = len(kinds) == 1 and kinds[0] in (title, names[0])
    return Chart(title, line_chart(f"{title} of {len(runs)} runs", lines, step_label(runs)), () if plain else keys)


def kind_of(series: Series) -> str:
    """What a dash pattern tells apart within a chart."""
    return f"{series.name} · {series.part}" if series.part else series.name


def step_label(runs: Sequence[Run]) -> str:
    """What the runs count, "step" where they count different things."""
    names = {run.step_name for run in runs}
    return names.pop() if len(names) == 1 else "step"


def lines_of(run: Run, series: Series, colour: int, dash: int, smooth: float, banded: bool) -> Iterator[Line]:
    """A series as lines: smoothed before the values as they are, or these alone, with their interval."""
    x = [point.step for point in series.points]
    y = [point.value for point in series.points]
    label = f"{run.name} {kind_of(series)}"
    if smooth:
        yield Line(label, colour, x, y, dash, faint=True)
        yield Line(label, colour, x, smoothed(y, smooth), dash)
        return
    low, high = bounds(series.points) if banded else ([], [])
    yield Line(label, colour, x, y, dash, low=low, high=high)


def bounds(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    """The ends of the points' intervals; none where a point has none."""
    low = [point.low for point in points if point.low is not None]
    high = [point.high for point in points if point.high is not None]
    return (low, high) if len(low) == len(high) == len(points) else ([], [])


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """The moving average Σ w^(t − i) x_i / Σ w^(t − i) over i ≤ t; values that are not finite stay, and count for nothing."""
    total, count, result = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            total, count = weight * total + value, weight * count + 1
        result.append(total / count if math.isfinite(value) else value)
    return result


def reward_spreads(runs: Sequence[Run], colours: Mapping[str, int], scores: Sequence[Scores]) -> list[Chart]:
    """How each run's rewards are spread at its steps, where it keeps them or their deviation; and files of scores."""
    charts = [chart for run in runs if (chart := spread_of(run, colours[run.name])) is not None]
    if scores:
        boxes = [Box(float(i), each.quantiles, 0, each.name) for i, each in enumerate(scores)]
        numbers = [str(i + 1) for i in range(len(scores))]
        names = "; ".join(f"{i + 1}: {each.name} ({each.size})" for i, each in enumerate(scores))
        charts.append(Chart("files of scores", box_chart("scores by file", boxes, "file", numbers), says=names))
    return charts


def spread_of(run: Run, colour: int) -> Chart | None:
    """The rewards of a run: boxes where each sample's is kept, else the mean with one standard deviation to both sides."""
    title = f"{run.name}: rewards by {run.step_name}"
    kept = [(step, values) for step, values in run.rewards if values]
    if kept:
        places = sorted({round(i * (len(kept) - 1) / (MOST_BOXES - 1)) for i in range(MOST_BOXES)})
        boxes = [
            Box(
                float(step),
                [float(q) for q in np.quantile(values, QUANTILES)],
                colour,
                f"{run.step_name} {figure(step)}",
            )
            for step, values in ([kept[i] for i in places] if len(kept) > MOST_BOXES else kept)
        ]
        return Chart(
            title,
            box_chart(title, boxes, run.step_name),
            says="Boxes hold the middle half, lines reach from 5 to 95\N{NO-BREAK SPACE}%.",
        )
    deviations = {point.step: point.value for series in run.named("reward_std") for point in series.points}
    points = [p for series in run.named("reward_mean") for p in series.points if p.step in deviations]
    if not points:
        return None
    x, y = [point.step for point in points], [point.value for point in points]
    low, high = ([point.value + side * deviations[point.step] for point in points] for side in (-1, 1))
    line = Line(run.name, colour, x, y, low=low, high=high)
    return Chart(
        title, line_chart(title, [line], run.step_name), says="Mean, and one standard deviation to both sides."
    )
