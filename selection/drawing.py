"""The figures of a selection's page as SVG, coloured by the page's style: a map of the rows, and coverage by picks."""

import html
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from selection.coverage import evenly
from selection.curve import Curve
from selection.rows import Rows

SIDE, MOST_POINTS, MOST_TOLD = 560, 3000, 500
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 290, 52, 14, 14, 40


def draw_map(rows: Rows, result: dict[str, Any]) -> tuple[float, str]:
    """The share of variance shown, and an SVG of at most 3,000 rows and the chosen ones, which say why when pointed at."""
    shown = evenly(len(rows), MOST_POINTS)
    chosen, already = (np.array(result[key], dtype=np.int64)[:MOST_POINTS] for key in ("indices", "already"))
    axes, share = principal_axes(rows[shown].astype(np.float64))
    flat = [rows[numbers].astype(np.float64) @ axes for numbers in (shown, already, chosen)]
    everything = np.concatenate(flat)
    low, span = everything.min(axis=0), max(float(np.ptp(everything, axis=0).max()), 1e-12)
    places = [12 + (points - low + (span - np.ptp(everything, axis=0)) / 2) / span * (SIDE - 24) for points in flat]
    dots = [dot(x, y, 2.0, "row") for x, y in places[0]]
    dots += [dot(x, y, 3.5, "already") for x, y in places[1]]
    told = list(zip(places[2], result["indices"], result["why"], strict=False))
    for number, ((x, y), index, why) in reversed(list(enumerate(told, start=1))):  # the first on top
        words = f"{number}: row {index}, {why}" if number <= MOST_TOLD else ""
        dots.append(dot(x, y, max(3.0, 6.0 - 0.1 * number), "chosen", words))
    return share, f'<svg viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="map of the rows">{"".join(dots)}</svg>'


def dot(x: float, y: float, radius: float, kind: str, words: str = "") -> str:
    """A circle, which says its words when pointed at."""
    place = f'<circle class="{kind}" cx="{x:.1f}" cy="{SIDE - y:.1f}" r="{radius:.1f}"'
    return f"{place}><title>{html.escape(words)}</title></circle>" if words else f"{place}/>"


def principal_axes(points: Float64[np.ndarray, "m d"]) -> tuple[Float64[np.ndarray, "d 2"], float]:
    """The two directions of largest variance (the second 0 where there is one dimension), and their share of it."""
    dim = points.shape[1]
    centred = points - points.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    axes = np.zeros((dim, 2))
    top = vectors[:, ::-1][:, :2]
    axes[:, : top.shape[1]] = top * np.where(top.sum(axis=0) < 0, -1, 1)  # an eigenvector's sign is arbitrary
    return axes, float(values[::-1][:2].sum() / max(values.sum(), 1e-300))


def draw_curve(
    chosen: Curve, drawn: Sequence[Curve], value: Callable[[Curve], Float64[np.ndarray, " k"]], words: str
) -> str:
    """One measure by picks: a line for the chosen, and the mean and the range of the random choices."""
    own, others = value(chosen), np.stack([value(curve) for curve in drawn])
    frame = Frame(int(chosen.picks[-1]), float(max(own.max(), others.max())))
    picks = chosen.picks.astype(np.float64)
    around = frame.points(np.r_[picks, picks[::-1]], np.r_[others.max(axis=0), others.min(axis=0)[::-1]])
    body = [frame.axes(), f'<polygon class="band" points="{around}"/>']
    for kind, values in (("random", others.mean(axis=0)), ("own", own)):
        body.append(f'<polyline class="{kind}" points="{frame.points(picks, values)}"/>')
        if len(picks) == 1:  # a line of one point is not seen
            x, y = frame.points(picks, values).split(",")
            body.append(f'<circle class="{kind}" cx="{x}" cy="{y}" r="4"/>')
    label = html.escape(f"{words} by picks")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(body)}</svg>'


class Frame:
    """Where values go in a figure from 1 to `most` picks and from 0 to `high`."""

    def __init__(self, most: int, high: float):
        self.most, self.high = most, high or 1.0

    def points(self, x: Float64[np.ndarray, " m"], y: Float64[np.ndarray, " m"]) -> str:
        """Places as SVG writes them."""
        across = LEFT + (x - 1) / max(self.most - 1, 1) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - y / self.high * (HEIGHT - TOP - BOTTOM)
        return " ".join(f"{left:.1f},{top:.1f}" for left, top in zip(across, down, strict=True))

    def axes(self) -> str:
        """Lines and numbers at round values."""
        parts = []
        for tick in ticks(self.high):
            y = self.points(np.ones(1), np.array([tick])).split(",")[1]
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y}" dy=".32em" text-anchor="end">{tick:g}</text>')
        for tick in [1.0, *(tick for tick in ticks(float(self.most), whole=True) if tick > 1 + self.most / 12)]:
            x = self.points(np.array([tick]), np.zeros(1)).split(",")[0]
            parts.append(f'<text class="tick" x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        return "".join(parts) + f'<text class="tick" x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">picks</text>'


def ticks(high: float, *, whole: bool = False, most: int = 5) -> list[float]:
    """0 and at most `most` round numbers up to `high`."""
    if high <= 0:
        return [0.0]
    power = 10.0 ** np.floor(np.log10(high / most))
    step = float(next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= high / most * (1 - 1e-9)))
    step = max(1.0, float(np.ceil(step))) if whole else step
    return [step * number for number in range(int(high / step + 1e-9) + 1)]
