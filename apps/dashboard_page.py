"""The dashboard as HTML: the sections that the app shows, and all of them as one file that needs nothing else."""

import base64
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from apps.dashboard_charts import other_charts, other_figures, reward_spreads, shown_at_first, usual_charts
from apps.dashboard_files import is_inside, name_below, printable, version_of
from apps.dashboard_plots import COLOURS, bar_chart, figure, reliability_chart
from apps.dashboard_reports import Calibration, Drift
from apps.dashboard_runs import Board, Picture, Run, status_of
from apps.rate_items import media_type
from mmrlhf.data import write_text
from mmrlhf.errors import UserError
from mmrlhf.page import NOTHING, thumbnail_uri

COLUMNS = (
    "loss",
    "reward_mean",
    "gold_mean",
    "kl",
    "clip_fraction",
    "held_out_agreement",
    "validation_implicit_accuracy",
)
MOST_SLIDES = 12  # of a run, in a file
LARGEST_INLINE = 500_000  # bytes of a picture that goes into a file as it is
SIDE = 1040  # pixels of larger ones there
MOST_SETTINGS, MOST_SETTING_RUNS = 60, 8
SCRIPT = """
const slider = document.getElementById("mm-slider");
if (slider) {
  const images = [...document.querySelectorAll("img[data-step]")];
  const steps = [...new Set(images.map((image) => Number(image.dataset.step)))].sort((a, b) => a - b);
  const show = () => {
    const step = steps[slider.value];
    document.getElementById("mm-step").textContent = step;
    for (const figure of new Set(images.map((image) => image.parentElement))) {
      const own = images.filter((image) => image.parentElement === figure);
      const shown = own.filter((image) => Number(image.dataset.step) <= step).pop() || own[0];
      own.forEach((image) => { image.hidden = image !== shown; });
    }
  };
  slider.addEventListener("input", show);
}
"""


@functools.cache
def macros() -> Any:
    """The parts of the page, in which every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("dashboard_page.html").module


def style() -> str:
    """The page's style sheet."""
    return (Path(__file__).parent / "dashboard_page.css").read_text(encoding="utf-8")


def colours_of(runs: Sequence[Run]) -> dict[str, int]:
    """A colour for each run that is shown, different ones as long as there are enough."""
    return {run.name: place % COLOURS for place, run in enumerate(runs)}


def overview(board: Board, shown: Sequence[Run], now: float) -> Markup:
    """Which runs go on, how far they are, their last figures, and what is wrong with them; first those that are shown."""
    runs = [*shown, *(run for run in board.runs if run not in shown)]
    colours, columns = colours_of(shown), [name for name in COLUMNS if any(run.named(name) for run in runs)]
    rows = [
        {
            "name": run.name,
            "colour": colours.get(run.name),
            "status": status_of(run, now),
            "done": f"{run.done} of {run.wanted}"
            if run.wanted
            else f"{run.done}"
            if run.step_name != "line"
            else run.count,
            "share": min(100, round(100 * run.done / run.wanted)) if run.wanted else None,
            "values": [last_value(run, name) for name in columns],
        }
        for run in runs
    ]
    return Markup(macros().overview(rows, columns, notes(board, runs)))


def last_value(run: Run, name: str) -> str:
    """A figure in the run's last line that has it."""
    series = run.named(name)
    return figure(series[-1].points[-1].value) if series else NOTHING


def notes(board: Board, runs: Sequence[Run]) -> list[dict[str, str]]:
    """What the runs diagnosed, first what still holds, then what could not be read."""
    told = []
    for run in runs:
        for problem in sorted(run.problems, key=lambda problem: not problem.lasts):
            since, until = figure(problem.first), figure(problem.last)
            when = (
                f"since {run.step_name} {since}"
                if problem.lasts
                else f"in {run.step_name} {since} to {until}, not since"
            )
            if not problem.lasts and since == until:
                when = f"in {run.step_name} {since}, not since"
            advice = f": {problem.advice}" if problem.advice else ""
            told.append({"run": run.name, "says": f"{problem.name} {when}{advice}"})
    told += [{"run": run.name, "says": fault} for run in runs for fault in run.faults]
    return told + [{"run": "", "says": f"{name} leads out of the folder: left out"} for name in board.refused]


def charts(runs: Sequence[Run], more: Sequence[str], smooth: float) -> Markup:
    """The usual charts, and those of the figures in `more`."""
    colours = colours_of(runs)
    entries = [{"label": run.name, "colour": colours[run.name]} for run in runs]
    return Markup(
        macros().charts(entries, [*usual_charts(runs, colours, smooth), *other_charts(runs, colours, more, smooth)])
    )


def reports(board: Board, runs: Sequence[Run]) -> Markup:
    """Reward distributions, reliability diagrams and drift, those that there are."""
    spread = reward_spreads(runs, colours_of(runs), board.scores)
    calibrations = [calibration_card(each) for each in board.calibrations]
    return Markup(macros().reports(spread, calibrations, [drift_card(each) for each in board.drifts]))


def calibration_card(calibration: Calibration) -> dict[str, Any]:
    """A reliability diagram with its figures."""
    legend = [
        {"label": label, "colour": place % COLOURS} for place, (label, _) in enumerate(calibration.curves) if label
    ]
    says = ", ".join(f"{name.replace('_', ' ')} {figure(value)}" for name, value in calibration.figures)
    chart = reliability_chart(f"reliability of {calibration.name}", calibration.curves)
    return {"name": calibration.name, "svg": chart, "legend": legend, "says": says}


def drift_card(drift: Drift) -> dict[str, Any]:
    """Both rounds' shares in the bins of the scores, and every check."""
    edges = [f"{edge:.2g}".replace("-", "\N{MINUS SIGN}") for edge in drift.edges]
    ticks = [f"≤ {edge}" for edge in edges] + [f"> {edges[-1]}" if edges else "all"]
    legend = [{"label": "before", "colour": 0}, {"label": "after", "colour": 1}]
    whole = len(drift.before) == len(drift.after) == len(ticks)
    chart = bar_chart(f"scores in {drift.name}", drift.before, drift.after, ticks, "score") if whole else Markup("")
    verdict = drift.verdict if drift.verdict in ("stable", "look", "retrain") else ""
    return {
        "name": drift.name,
        "svg": chart,
        "legend": legend if whole else [],
        "verdict": verdict,
        "checks": drift.checks,
    }


def pictures(runs: Sequence[Run], step: float) -> Markup:
    """Each run's last grid up to a step, from the address `pictures/KEY`."""
    colours, grids = colours_of(runs), []
    for run in runs:
        if run.pictures:
            shown = [picture for picture in run.pictures if picture.step <= step] or [run.pictures[0]]
            grid = {"name": run.name, "step_name": run.step_name, "colour": colours[run.name], "prompts": run.prompts}
            changed, _ = version_of(shown[-1].path)
            grids.append(grid | {"step": shown[-1].step, "source": f"pictures/{shown[-1].key}?{changed}"})
    return Markup(macros().pictures(grids)) if grids else Markup("")


def slides(board: Board, runs: Sequence[Run]) -> Markup:
    """The grids of all steps in the page itself, of many an even choice."""
    colours, grids = colours_of(runs), list[dict[str, Any]]()
    for run in runs:
        chosen = spread_out(run.pictures, MOST_SLIDES)
        uris = [(picture.step, picture_uri(picture.path, board.roots)) for picture in chosen]
        own = [{"step": step, "source": uri} for step, uri in uris if uri]
        if own:
            left_out = f", {len(chosen)} of {len(run.pictures)} pictures" if len(chosen) < len(run.pictures) else ""
            says = f"by {run.step_name}, the same prompts and noise{left_out}"
            grids.append({"name": run.name, "step_name": run.step_name, "colour": colours[run.name], "slides": own,
                          "says": says, "prompts": run.prompts})  # fmt: skip
    if not grids:
        return Markup("")
    steps = sorted({slide["step"] for grid in grids for slide in grid["slides"]})
    return Markup(macros().slides([grid | {"last": steps[-1], "places": len(steps)} for grid in grids]))


def spread_out(pictures: Sequence[Picture], most: int) -> list[Picture]:
    """At most so many, the first and the last among them."""
    if len(pictures) <= most:
        return list(pictures)
    return [pictures[round(place * (len(pictures) - 1) / (most - 1))] for place in range(most)]


def picture_uri(path: Path, roots: Sequence[Path]) -> str:
    """A picture as a string that goes into the page; "" for one that cannot be shown."""
    if not is_inside(path, roots):
        return ""
    try:
        data = path.read_bytes() if path.stat().st_size <= LARGEST_INLINE else b""
        kind = media_type(data)
        return f"data:{kind};base64,{base64.b64encode(data).decode()}" if kind else thumbnail_uri(path, SIDE)
    except (OSError, UserError):
        return ""


def settings(runs: Sequence[Run]) -> Markup:
    """The settings that several of the runs have and that differ; nothing where there are none."""
    runs = [run for run in runs if run.settings][:MOST_SETTING_RUNS]
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = []
    for name in names:
        values = [setting(run.settings, name) for run in runs]
        if len({value for value in values if value != NOTHING}) > 1 and name != "out" and not name.endswith("_sha256"):
            rows.append({"name": printable(name), "values": values})
    if len(runs) < 2 or not rows:
        return Markup("")
    return Markup(macros().settings([run.name for run in runs], rows[:MOST_SETTINGS]))


def setting(values: Mapping[str, Any], name: str) -> str:
    """A value of a config as a short text."""
    if name not in values:
        return NOTHING
    text = values[name] if isinstance(values[name], str) else json.dumps(values[name], ensure_ascii=False)
    return printable(text if len(text) <= 80 else text[:79] + "…")


def write_page(board: Board, out: Path, *, smooth: float = 0.0, now: datetime | None = None) -> None:
    """Write everything about all runs as one HTML file without scripts or pictures from elsewhere."""
    now = now or datetime.now().astimezone()
    runs = board.runs
    first = shown_at_first(runs)
    rest = [name for name in other_figures(runs) if name not in first]
    others = other_charts(runs, colours_of(runs), rest, smooth)
    differing, grids = settings(runs), slides(board, runs)
    body = [overview(board, runs, now.timestamp()), charts(runs, first, smooth)]
    if grids:
        body += [Markup("<h2>Pictures</h2>"), grids]
    body.append(reports(board, runs))
    if others:
        body += [Markup("<h2>Other figures</h2>"), Markup(macros().folded(others))]
    if differing:
        body.append(differing)
    title = "Runs in " + ", ".join(name_below(root, root) for root in board.roots)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    when = f"{now:%Y-%m-%d %H:%M %Z}"
    page = macros().page(title, when, Markup(style()), Markup(SCRIPT), digest, Markup("").join(body))
    write_text(printable(str(page).strip() + "\n"), out)
