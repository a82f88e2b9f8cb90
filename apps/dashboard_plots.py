"""Charts as inline SVG, whose colours are the page's own, so that they follow light and dark; texts are escaped."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 36
COLOURS = 8  # as many as dashboard_page.css has
DASHES = ("", "6 4", "2 3", "9 3 2 3", "12 4", "1 6")
MOST_POINTS = 300  # of a line; more cannot be told apart
MOST_TIPS = 60
TICKS = 5
MOST_LETTERS = 36  # of the names along an axis together


class Line(NamedTuple):
    """A line through (x, y), with a band where `low` and `high` are given; `faint` ones are behind others."""

    label: str
    colour: int
    x: Sequence[float]
    y: Sequence[float]
    dash: int = 0
    faint: bool = False
    low: Sequence[float] = ()
    high: Sequence[float] = ()


class Box(NamedTuple):
    """Five quantiles at a place of the x axis."""

    x: float
    quantiles: Sequence[float]
    colour: int
    label: str


class Frame(NamedTuple):
    """What is shown of both axes."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The place of a point in the picture."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def line_chart(name: str, lines: Sequence[Line], x_label: str) -> Markup:
    """Lines over steps; values that are not finite leave a gap."""
    drawn = [thinned(line) for line in lines]
    xs = [x for line in drawn for x in line.x]
    ys = [y for line in drawn for y in (*line.y, *line.low, *line.high)]
    frame = Frame(span(xs, 0.0), span(ys, 0.06))
    parts = [axes(frame, x_label, whole=all(float(x).is_integer() for x in xs))]
    parts += [band(line, frame) for line in drawn if line.low]
    parts += [path(line, frame) for line in drawn]
    parts += [tips(line, frame, x_label) for line in drawn if not line.faint]
    return svg(name, parts)


def box_chart(name: str, boxes: Sequence[Box], x_label: str, ticks: Sequence[str] = ()) -> Markup:
    """Boxes from the first to the third quartile, whiskers to 5 and 95 %; `ticks` name the places 0, 1, 2 …"""
    places = sorted({box.x for box in boxes})
    gap = min((b - a for a, b in zip(places, places[1:], strict=False)), default=1.0)
    colours = sorted({box.colour for box in boxes})
    frame = Frame(
        (places[0] - 0.6 * gap, places[-1] + 0.6 * gap), span([q for box in boxes for q in box.quantiles], 0.06)
    )
    width = (WIDTH - LEFT - RIGHT) * 0.7 / (len(places) + 0.2) / len(colours)
    parts = [axes(frame, x_label, whole=True, names=ticks)]
    for box in boxes:
        middle, _ = frame.at(box.x, 0.0)
        middle += (colours.index(box.colour) - (len(colours) - 1) / 2) * width
        parts.append(one_box(box, middle, min(0.8 * width, 26.0), [frame.at(0.0, q)[1] for q in box.quantiles]))
    return svg(name, parts)


def one_box(box: Box, middle: float, width: float, heights: Sequence[float]) -> Markup:
    """A box with its whiskers and median."""
    low, first, median, third, high = heights
    return Markup(
        '<g class="s{c}"><title>{label}</title><path d="M{m:.1f} {low:.1f}V{high:.1f}" class="thin"/>'
        '<rect x="{left:.1f}" y="{third:.1f}" width="{w:.1f}" height="{h:.1f}" class="box"/>'
        '<path d="M{left:.1f} {median:.1f}h{w:.1f}" class="line"/></g>'
    ).format(c=box.colour % COLOURS, label=f"{box.label}: median {figure(box.quantiles[2])}, half from "
             f"{figure(box.quantiles[1])} to {figure(box.quantiles[3])}", m=middle, low=low, high=high, left=middle - width / 2,
             third=third, w=width, h=max(first - third, 0.5), median=median)  # fmt: skip


def reliability_chart(name: str, curves: Sequence[tuple[str, Sequence[tuple[float, float, float]]]]) -> Markup:
    """Predicted against observed shares; larger points hold more, and what is calibrated lies on the diagonal."""
    frame = Frame((0.0, 1.0), (0.0, 1.0))
    (x0, y0), (x1, y1) = frame.at(0.0, 0.0), frame.at(1.0, 1.0)
    parts = [axes(frame, "predicted probability that the first is preferred")]
    parts.append(Markup('<path d="M{:.1f} {:.1f}L{:.1f} {:.1f}" class="diagonal"/>').format(x0, y0, x1, y1))
    for colour, (label, curve) in enumerate(curves):
        line = Line(label, colour, [x for x, _, _ in curve], [y for _, y, _ in curve])
        parts.append(path(line, frame))
        largest = max(size for _, _, size in curve) or 1.0
        for x, y, size in curve:
            across, up = frame.at(x, y)
            parts.append(
                Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{:.1f}" class="f{}"><title>{}</title></circle>').format(
                    across, up, 1.5 + 4 * math.sqrt(max(size, 0.0) / largest), colour % COLOURS,
                    f"{label}: predicted {figure(x)}, observed {figure(y)}, {size:.0f} judgements".lstrip(": "),
                )
            )  # fmt: skip
    return svg(name, parts)


def bar_chart(name: str, before: Sequence[float], after: Sequence[float], ticks: Sequence[str], x_label: str) -> Markup:
    """Two bars a bin."""
    frame = Frame((-0.6, len(before) - 0.4), (0.0, 1.1 * max(*before, *after, 1e-9)))
    parts = [axes(frame, x_label, whole=True, names=ticks)]
    width = (WIDTH - LEFT - RIGHT) / len(before) * 0.36
    for side, values in enumerate((before, after)):
        for place, value in enumerate(values):
            across, up = frame.at(float(place), value)
            parts.append(
                Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="f{}"><title>{}</title></rect>')
                .format(across - width * (1 - side), up, width, HEIGHT - BOTTOM - up, side, f"{100 * value:.1f} %")
            )  # fmt: skip
    return svg(name, parts)


def svg(name: str, parts: Sequence[Markup]) -> Markup:
    """The picture; `name` is what a screen reader says."""
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, name, Markup("").join(parts)
    )


def axes(frame: Frame, x_label: str, *, whole: bool = False, names: Sequence[str] = ()) -> Markup:
    """Lines and numbers of both axes; `names` stand for the places 0, 1, 2 … of the first."""
    parts = []
    for value in nice_ticks(*frame.y):
        _, up = frame.at(frame.x[0], value)
        parts.append(
            Markup('<path d="M{} {:.1f}H{}" class="grid"/><text x="{}" y="{:.1f}" class="end">{}</text>').format(
                LEFT, up, WIDTH - RIGHT, LEFT - 6, up + 3.5, figure(value)
            )
        )
    every = -(-sum(map(len, names)) // MOST_LETTERS) or 1
    ticks = list(range(0, len(names), every)) if names else nice_ticks(*frame.x, whole=whole)
    for value in ticks:
        across, _ = frame.at(float(value), frame.y[0])
        text = names[int(value)] if names else figure(value)
        parts.append(Markup('<text x="{:.1f}" y="{}" class="mid">{}</text>').format(across, HEIGHT - BOTTOM + 14, text))
    parts.append(
        Markup('<text x="{}" y="{}" class="mid soft">{}</text>').format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label)
    )
    return Markup("").join(parts)


def path(line: Line, frame: Frame) -> Markup:
    """A line, in pieces where values are missing; a single point is a dot."""
    pieces, pen = [], "M"
    for x, y in zip(line.x, line.y, strict=True):
        if math.isfinite(y):
            pieces.append("{}{:.1f} {:.1f}".format(pen, *frame.at(x, y)))
            pen = "L"
        else:
            pen = "M"
    dots = Markup("")
    if len(pieces) == 1 and not line.faint:
        dots = Markup('<path d="{}h0" class="dot s{}"/>').format(pieces[0], line.colour % COLOURS)
    return dots + Markup('<path d="{}" class="line s{}{}" stroke-dasharray="{}"/>').format(
        "".join(pieces),
        line.colour % COLOURS,
        " faint" if line.faint else "",
        DASHES[line.dash % len(DASHES)] or "none",
    )


def band(line: Line, frame: Frame) -> Markup:
    """The area between `low` and `high`."""
    top = [frame.at(x, y) for x, y in zip(line.x, line.high, strict=True) if math.isfinite(y)]
    bottom = [frame.at(x, y) for x, y in zip(line.x, line.low, strict=True) if math.isfinite(y)]
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*top, *reversed(bottom)])
    return Markup('<polygon points="{}" class="band f{}"/>').format(corners, line.colour % COLOURS)


def tips(line: Line, frame: Frame, x_label: str) -> Markup:
    """Invisible points that say their values when pointed at."""
    points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    every = -(-len(points) // MOST_TIPS) or 1
    return Markup("").join(
        Markup('<circle cx="{:.1f}" cy="{:.1f}" r="6" class="tip"><title>{}</title></circle>').format(
            *frame.at(x, y), f"{line.label}: {figure(y)} at {x_label} {figure(x)}"
        )
        for x, y in points[::every]
    )


def thinned(line: Line) -> Line:
    """A long line by fewer points: of each stretch the lowest and the highest, so that no peak is lost."""
    if len(line.x) <= MOST_POINTS:
        return line
    stretch = -(-2 * len(line.x) // MOST_POINTS)
    kept = {0, len(line.x) - 1}
    for start in range(0, len(line.x), stretch):
        places = [i for i in range(start, min(start + stretch, len(line.x))) if math.isfinite(line.y[i])]
        kept |= {min(places, key=lambda i: line.y[i]), max(places, key=lambda i: line.y[i])} if places else {start}
    order = sorted(kept)
    x, y, low, high = ([values[i] for i in order] if values else [] for values in (line.x, line.y, line.low, line.high))
    return line._replace(x=x, y=y, low=low, high=high)


def span(values: Sequence[float], room: float) -> tuple[float, float]:
    """From the lowest to the highest of the values that are finite, with a share of it as room on both sides."""
    known = [value for value in values if math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-12):
        half = 0.5 * max(abs(low), 1e-6) if low else 0.5
        return low - half, high + half
    return low - room * (high - low), high + room * (high - low)


def nice_ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """About five round numbers from `low` to `high`."""
    step = 10.0 ** math.floor(math.log10((high - low) / TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= TICKS)
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def figure(value: float) -> str:
    """A number in four digits, with a minus of full length."""
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")
