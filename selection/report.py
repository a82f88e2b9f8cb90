"""A self-contained page about one selection: a two-dimensional map of the rows, and the coverage next to a random choice."""

import html
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from selection.coverage import evenly
from selection.files import write_whole
from selection.rows import Rows

SIDE, MOST_POINTS, MOST_LISTED = 560, 3000, 200
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.2rem .9rem .2rem 0;text-align:left;vertical-align:top}
svg{max-width:100%;height:auto;border:1px solid #ddd}td.n,th.n{text-align:right}.key{color:#555}"""


def write_report(path: Path, matrix: Float[np.ndarray, "n d"], result: dict[str, Any]) -> None:
    """Write the page for a result of `selection.select.choose`."""
    chosen, drawn = result["coverage"], result["baseline_random"]
    title = f"{result['budget']} of {result['rows']} rows by {result['strategy']}"
    table = "".join(
        f"<tr><td>{name}<td class=n>{chosen[key]:.4g}<td class=n>{drawn[key]:.4g}"
        f"<td class=n>{chosen[key] / (drawn[key] or 1):.2f}"
        for key, name in (("radius", "covering radius"), ("mean_distance", "mean distance"))
    )
    share, drawing = draw_map(matrix, result)
    page = f"""<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>
<h1>{html.escape(title)}</h1>
<p>Seed {result["seed"]}, {result["seconds"]:.2f} s, embedding {result["embedding_hash"]}, {result["dimensions"]} dimensions.
Distance from each row to the nearest chosen one, measured on {chosen["rows_measured"]} rows,
next to as many rows drawn at random:</p>
<table><tr><th><th class=n>{html.escape(result["strategy"])}<th class=n>random<th class=n>ratio{table}</table>
<h2>Map</h2><p class=key>The first two principal components ({share:.0%} of the variance). Grey: rows; red: chosen now, the first
ones larger; blue: chosen earlier.</p>{drawing}
<h2>Chosen</h2><table><tr><th class=n>#<th class=n>row<th>why<th>file{listing(result)}</table></html>
"""
    write_whole(path, page)


def listing(result: dict[str, Any]) -> str:
    """Table rows of the first chosen ones."""
    paths = result.get("paths") or [""] * len(result["indices"])
    entries = list(zip(result["indices"], result["why"], paths, strict=True))
    rows = [
        f"<tr><td class=n>{number}<td class=n>{index}<td>{html.escape(why)}<td>{html.escape(path)}"
        for number, (index, why, path) in enumerate(entries[:MOST_LISTED], start=1)
    ]
    more = len(entries) - MOST_LISTED
    return "".join(rows) + (f"<tr><td><td><td>and {more} more, in the JSON file" if more > 0 else "")


def draw_map(matrix: Float[np.ndarray, "n d"], result: dict[str, Any]) -> tuple[float, str]:
    """The share of variance shown, and an SVG of at most 3,000 rows and the chosen ones."""
    rows = Rows(matrix)
    shown = evenly(len(rows), MOST_POINTS)
    chosen, already = (np.array(result[key], dtype=np.int64)[:MOST_POINTS] for key in ("indices", "already"))
    axes, share = principal_axes(rows[shown].astype(np.float64))
    flat = [rows[numbers].astype(np.float64) @ axes for numbers in (shown, already, chosen)]
    everything = np.concatenate(flat)
    low, span = everything.min(axis=0), max(float(np.ptp(everything, axis=0).max()), 1e-12)
    dots = []
    for points, colour, large in zip(flat, ("#bbb", "#36c", "#d33"), (1.5, 3.5, 6.0), strict=True):
        for number, (x, y) in enumerate(10 + (points - low) / span * (SIDE - 20)):
            radius = max(3.0, large - 0.1 * number) if colour == "#d33" else large
            dots.append(
                f'<circle cx="{x:.1f}" cy="{SIDE - y:.1f}" r="{radius:.1f}" fill="{colour}" fill-opacity=".7"/>'
            )
    return share, f'<svg viewBox="0 0 {SIDE} {SIDE}" width="{SIDE}" height="{SIDE}" role="img">{"".join(dots)}</svg>'


def principal_axes(points: Float64[np.ndarray, "m d"]) -> tuple[Float64[np.ndarray, "d 2"], float]:
    """The two directions of largest variance (the second 0 where there is one dimension), and their share of it."""
    dim = points.shape[1]
    centred = points - points.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    axes = np.zeros((dim, 2))
    top = vectors[:, ::-1][:, :2]
    axes[:, : top.shape[1]] = top * np.where(top.sum(axis=0) < 0, -1, 1)  # an eigenvector's sign is arbitrary
    return axes, float(values[::-1][:2].sum() / max(values.sum(), 1e-300))
