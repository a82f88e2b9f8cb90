"""One self-contained HTML page: templates that extend page.html, figures and thumbnails inlined, numbers as people read them."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmrlhf.images import load_image, to_pil

ACCENT, MUTED, SECOND = "#c2410c", "#94a3b8", "#1d4ed8"
NOTHING = "–"


def render(template: str, **values: Any) -> str:
    """The page of a template, named by its path below this package; a name that it uses and is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "percents": percents, "number": number, "numbers": numbers}
    return environment.get_template(template).render(**values)


def percent(share: float | None, digits: int = 1) -> str:
    """0.123 → 12.3 %."""
    return NOTHING if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def percents(interval: Sequence[float] | None, digits: int = 1) -> str:
    """[0.1, 0.2] → 10.0–20.0 %."""
    return NOTHING if interval is None else f"{100 * interval[0]:.{digits}f}–{percent(interval[1], digits)}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits after the point, – for none."""
    return NOTHING if value is None or math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def numbers(interval: Sequence[float] | None, digits: int = 3) -> str:
    """[-0.1, 0.2] → −0.100 to 0.200."""
    return NOTHING if interval is None else f"{number(interval[0], digits)} to {number(interval[1], digits)}"


def thumbnail_uri(path: Path, side: int = 200) -> str:
    """A picture file, at most `side` pixels wide and high, as a string that goes into the page."""
    return small_uri(load_image(path), side)


def small_uri(image: Float[Tensor, "3 h w"], side: int) -> str:
    """An image, at most `side` pixels wide and high, as a string that goes into the page."""
    picture = to_pil(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def figure_uri(figure: Any) -> str:
    """A matplotlib figure as an SVG string that goes into the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def new_figure(size: tuple[float, float] = (5.2, 3.2), columns: int = 1) -> tuple[Any, list[Any]]:
    """A figure without window or global state, and its axes side by side in the pages' style; `size` in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.25)
        each.set_axisbelow(True)
    return figure, axes
