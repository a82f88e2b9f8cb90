"""A self-contained page about one selection: coverage next to random choices, a map of the rows, and the chosen images."""

from pathlib import Path
from typing import Any

import jinja2

from mmrlhf.errors import UserError
from mmrlhf.page import small_uri, thumbnail_uri
from selection.compressed import Reader
from selection.curve import coverage_curve, random_curves
from selection.drawing import draw_curve, draw_map
from selection.files import write_whole
from selection.parquet_pictures import TableReader
from selection.pictures import picture_at
from selection.rows import Rows
from selection.stacked import Matrix

MOST_LISTED, MOST_PICTURES, THUMBNAIL = 200, 60, 160


def write_report(path: Path, matrix: Matrix, result: dict[str, Any]) -> None:
    """Write the page for a result of `selection.select.choose`."""
    rows = Rows(matrix)
    curve = coverage_curve(rows, result["indices"], result["already"])
    drawn = random_curves(rows, result["budget"], result["already"], result["seed"])
    share, picture = draw_map(rows, result)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("report.html").render(
        result=result,
        title=f"{result['budget']} of {result['rows']} rows by {result['strategy']}",
        table=comparison(result),
        mean_curve=draw_curve(curve, drawn, lambda part: part.mean, "mean distance"),
        radius_curve=draw_curve(curve, drawn, lambda part: part.radius, "covering radius"),
        seeds=len(drawn),
        share=share,
        map=picture,
        recipe=[settings(strategy) for strategy in result.get("strategies", [])],
        counts=by_strategy(result),
        pictures=pictures(result),
        listed=listing(result),
        more=max(0, len(result["indices"]) - MOST_LISTED),
    )
    write_whole(path, page)


def comparison(result: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """(measure, chosen, random, ratio) of the coverage after all picks."""
    chosen, drawn = result["coverage"], result["baseline_random"]
    names = (("radius", "covering radius"), ("mean_distance", "mean distance"))
    return [(name, chosen[key], drawn[key], chosen[key] / (drawn[key] or 1)) for key, name in names]


def settings(strategy: dict[str, Any]) -> tuple[str, str]:
    """A strategy of a recipe and its settings, in words."""
    told = []
    for key, value in strategy.items():
        if isinstance(value, dict):
            told.append(f"{key} " + ", ".join(f"{name} {share:.1%}" for name, share in value.items()))
        elif isinstance(value, list | tuple):
            told.append(f"{key} " + ", ".join(map(str, value)))
        elif key != "type" and value is not None:
            told.append(f"{key.replace('_', ' ')} {value}")
    return strategy["type"], "; ".join(told)


def by_strategy(result: dict[str, Any]) -> str:
    """How many picks stood out by each strategy, most first."""
    names = [pick["strategy"] for pick in result["picks"]]
    counts = sorted(dict.fromkeys(names), key=lambda name: -names.count(name))
    return ", ".join(f"{name} {names.count(name)}" for name in counts)


def pictures(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The first chosen images, small enough for the page; those that cannot be read any more are left out."""
    reader, table_reader, found = Reader(), TableReader(), {}
    picks = list(zip(result.get("paths", [])[:MOST_PICTURES], result["picks"], strict=False))
    # as they lie in the shards, for a compressed one is read from its front again to go back
    for number in sorted(range(len(picks)), key=lambda number: place(picks[number][1])):
        path, pick = picks[number]
        try:
            uri = thumbnail(path, pick, reader, table_reader)
            found[number] = {"number": number + 1, "name": Path(path).name, "uri": uri} | pick
        except (UserError, OSError):
            continue
    reader.close()
    return [found[number] for number in sorted(found)]


def place(pick: dict[str, Any]) -> tuple[str, int]:
    """Where a pick lies."""
    return pick.get("shard", pick.get("table", "")), pick.get("start", pick.get("row", 0))


def thumbnail(path: str, pick: dict[str, Any], reader: Reader, table_reader: TableReader) -> str:
    """A chosen image, from its file or from its place in a larger one."""
    picture = picture_at(path, pick, reader, table_reader)
    return thumbnail_uri(picture, THUMBNAIL) if isinstance(picture, Path) else small_uri(picture.pixels(), THUMBNAIL)


def listing(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The first picks with their files."""
    paths = result.get("paths") or [""] * len(result["indices"])
    picks = zip(result["picks"][:MOST_LISTED], paths, strict=False)
    return [{"number": number, "path": path} | pick for number, (pick, path) in enumerate(picks, start=1)]
