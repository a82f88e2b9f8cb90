"""Runs read from their folders into frozen records: series of figures, whether they are alive, problems, pictures."""

import functools
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from apps.dashboard_files import Found, find, is_inside, name_below, printable, version_of
from apps.dashboard_lines import (
    STEP_NAMES,
    Line,
    as_float,
    flat,
    in_order,
    is_number,
    numbers_in,
    progress,
    read_lines,
    step_name_of,
    usual_seconds,
)
from apps.dashboard_reports import Calibration, Drift, Scores, read_reports, read_scores
from mmrlhf.data import read_prompts
from mmrlhf.errors import UserError
from mmrlhf.runs import ADVICE, CONFIG

SETTINGS_FILES = (CONFIG, "train.json")
FINISHED_BY = ("reward.json", "items.jsonl", "eval.json")  # what commands that count no epochs write last
INTERVAL = "_ci95"
GRID_PROMPTS = 16
MOST_ADVICE = 1000  # letters
QUIET_AFTER, QUIET_SECONDS = 4, 30.0  # times the usual seconds a line, and never before so many seconds
STARTING_SECONDS = 1800.0  # a model may load that long


class Point(NamedTuple):
    """A value at a step, and an interval where the run gives one."""

    step: float
    value: float
    low: float | None = None
    high: float | None = None


class Series(NamedTuple):
    """One figure over the steps of a run, or of a `part` of it ("" where it has none)."""

    part: str
    name: str
    points: tuple[Point, ...]


class Problem(NamedTuple):
    """What a run diagnosed, from its first step to its last; `lasts` where the newest line still says so.

    `advice` says what to change, "" where the run does not.
    """

    name: str
    first: float
    last: float
    lasts: bool
    advice: str = ""


class Picture(NamedTuple):
    """A grid of samples of a step; `key` is its name in addresses."""

    step: int
    path: Path
    key: str


class Status(NamedTuple):
    """Whether a run goes on, and in words why that is believed."""

    word: Literal["starting", "running", "silent", "finished", "stopped"]
    says: str


@dataclass(frozen=True)
class Run:
    """What a run's folder says; `rewards` are the samples' rewards by step where it keeps them."""

    name: str
    folder: Path
    settings: Mapping[str, Any]
    step_name: str
    count: int
    series: tuple[Series, ...]
    rewards: tuple[tuple[float, tuple[float, ...]], ...]
    problems: tuple[Problem, ...]
    faults: tuple[str, ...]
    done: int
    wanted: int | None
    finished: bool
    stopped: str
    """Why it ended before it had made all of its steps, "" where it did not say so."""
    seconds: float | None
    """The usual time from one line to the next, None where no line says."""
    changed: float
    """When metrics.jsonl was last written, in seconds since 1970."""
    pictures: tuple[Picture, ...]
    prompts: tuple[str, ...]

    def named(self, name: str) -> list[Series]:
        """The series of a figure, one a part."""
        return [series for series in self.series if series.name == name]

    def metrics(self) -> list[str]:
        """The names of all figures, sorted."""
        return sorted({series.name for series in self.series})


@dataclass(frozen=True)
class Board:
    """Everything below the folders that were given."""

    roots: tuple[Path, ...]
    runs: tuple[Run, ...]
    calibrations: tuple[Calibration, ...]
    drifts: tuple[Drift, ...]
    scores: tuple[Scores, ...]
    refused: tuple[str, ...]
    pictures: Mapping[str, Path] = field(default_factory=dict)
    """Each picture by its key."""


def read_board(roots: Sequence[Path]) -> Board:
    """Read all runs and reports below the folders; files that have not changed since are not parsed again."""
    found = [find(root) for root in dict.fromkeys(root.resolve() for root in roots)]
    names = Names(several=len(found) > 1)
    runs = [read_run(file, names.of(file.parent, each), each) for each in found for file in each.metrics]
    calibrations, drifts = read_reports([(names.of(file, each), file) for each in found for file in each.reports])
    scores = read_scores([(names.of(file, each), file) for each in found for file in each.scores])
    return Board(
        tuple(each.root for each in found),
        tuple(runs),
        calibrations,
        drifts,
        scores,
        tuple(name for each in found for name in each.refused),
        {picture.key: picture.path for run in runs for picture in run.pictures},
    )


class Names:
    """Names of runs and files, all different; those of several folders begin with the folder's."""

    def __init__(self, several: bool) -> None:
        self.several, self.given = several, set[str]()

    def of(self, path: Path, found: Found) -> str:
        """The name of a path in a folder."""
        name = name_below(path, found.root)
        if self.several and path != found.root:
            name = f"{printable(found.root.name)}/{name}"
        number = 1
        while (shown := name if number == 1 else f"{name} ({number})") in self.given:
            number += 1
        self.given.add(shown)
        return shown


def read_run(file: Path, name: str, found: Found) -> Run:
    """The run whose metrics.jsonl is `file`."""
    folder, (changed, size) = file.parent, version_of(file)
    lines, faults = read_lines(file, changed, size)
    settings = read_settings(folder, found)
    step_name = step_name_of(lines)
    parts = in_order(lines, step_name)
    kept = [line for part in parts.values() for line in part]
    done = progress(parts, step_name)
    wanted = settings.get(f"{step_name}s")
    wanted = wanted if isinstance(wanted, int) and not isinstance(wanted, bool) else None
    return Run(
        name=name,
        folder=folder,
        settings=settings,
        step_name=step_name,
        count=len(kept),
        series=tuple(series_of(parts)),
        rewards=tuple((step, values) for step, line in kept if (values := numbers_in(line.get("rewards")))),
        problems=problems_of(parts, advice_of(folder, found)),
        faults=tuple(f"line {row} of {name_below(file, found.root)} is no JSON object: left out" for row in faults),
        done=done,
        wanted=wanted,
        finished=(wanted is not None and len(parts) == 1 and done >= wanted > 0)
        or any((folder / last).is_file() for last in FINISHED_BY),
        stopped=stopped_of(parts),
        seconds=usual_seconds([line for _, line in kept]),
        changed=changed / 10**9,
        pictures=tuple(pictures_of(folder, found)),
        prompts=prompts_of(folder, settings, found),
    )


def read_settings(folder: Path, found: Found) -> dict[str, Any]:
    """The run's config, {} where there is none that can be read."""
    for name in SETTINGS_FILES:
        if is_inside(folder / name, [found.root]):
            try:
                settings = json.loads((folder / name).read_bytes())
            except (OSError, ValueError, RecursionError):
                continue
            if isinstance(settings, dict):
                return settings
    return {}


def series_of(parts: Mapping[str, Sequence[tuple[float, Line]]]) -> Iterator[Series]:
    """Every figure that is a number somewhere, but the steps themselves; null is no value, NaN one that cannot be drawn."""
    for part, entries in parts.items():
        points: dict[str, list[Point]] = {}
        for step, line in entries:
            for name, value in flat(line):
                if is_number(value) and name not in STEP_NAMES[:3]:
                    interval = numbers_in(line.get(name + INTERVAL))
                    low, high = interval if len(interval) == 2 else (None, None)
                    points.setdefault(printable(name), []).append(Point(step, as_float(value), low, high))
        yield from (Series(part, name, tuple(values)) for name, values in sorted(points.items()))


def advice_of(folder: Path, found: Found) -> dict[str, str]:
    """Problem -> the sentence that says what to change, as the run wrote them last; {} where it wrote none."""
    if not is_inside(folder / ADVICE, [found.root]):
        return {}
    try:
        advice = json.loads((folder / ADVICE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    entries = advice.items() if isinstance(advice, dict) else ()
    return {printable(name): printable(text[:MOST_ADVICE]) for name, text in entries if isinstance(text, str)}


def stopped_of(parts: Mapping[str, Sequence[tuple[float, Line]]]) -> str:
    """What the newest line says of an early end; a run that goes on after all has newer lines."""
    last = [entries[-1] for entries in parts.values() if entries]
    said = max(last, key=lambda each: each[0])[1].get("stopped") if last else None
    return printable(said[:MOST_ADVICE]) if isinstance(said, str) else ""


def problems_of(
    parts: Mapping[str, Sequence[tuple[float, Line]]], advice: Mapping[str, str] = MappingProxyType({})
) -> tuple[Problem, ...]:
    """What the lines name as `problems`, and figures that are no finite numbers."""
    seen: dict[str, list[tuple[float, bool]]] = {}
    for entries in parts.values():
        for place, (step, line) in enumerate(entries):
            named = line.get("problems")
            names = [printable(each) for each in named if isinstance(each, str)] if isinstance(named, list) else []
            names += [
                f"{printable(name)} is not a finite number"
                for name, value in flat(line)
                if is_number(value) and not math.isfinite(as_float(value))
            ]
            for each in names:
                seen.setdefault(each, []).append((step, place == len(entries) - 1))
    return tuple(
        Problem(name, places[0][0], places[-1][0], any(last for _, last in places), advice.get(name, ""))
        for name, places in seen.items()
    )


def status_of(run: Run, now: float) -> Status:
    """Whether a run goes on: from how many steps it wanted, and from the age of its last line; `now` in seconds since 1970."""
    age = max(0.0, now - run.changed)
    if run.finished:
        return Status("finished", f"{duration(age)} ago")
    if run.stopped:
        return Status("stopped", f"{run.stopped}, {duration(age)} ago")
    if not run.count:
        word: Literal["starting", "silent"] = "starting" if age <= STARTING_SECONDS else "silent"
        return Status(word, f"no line yet, begun {duration(age)} ago")
    usual = "" if run.seconds is None else f", one takes {duration(run.seconds)}"
    if age <= max(QUIET_SECONDS, QUIET_AFTER * (run.seconds or 0.0)):
        known = run.wanted is not None and run.seconds is not None and run.wanted > run.done
        left = f", {duration((run.wanted - run.done) * run.seconds)} left" if known else ""  # type: ignore[operator]
        return Status("running", f"last line {duration(age)} ago{usual}{left}")
    return Status("silent", f"last line {duration(age)} ago{usual}: it ended early, was stopped, or hangs")


def duration(seconds: float) -> str:
    """A time as people say it."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}\N{NO-BREAK SPACE}{unit}"
    return f"{seconds:.0f}\N{NO-BREAK SPACE}s" if seconds >= 2 else f"{seconds:.1f}\N{NO-BREAK SPACE}s"


def pictures_of(folder: Path, found: Found) -> Iterator[Picture]:
    """The grids in samples/ whose names end in the number of the step, in order."""
    grids = []
    for path in folder.glob("samples/*.png"):
        number = re.search(r"(\d{1,12})$", path.stem)
        if number and is_inside(path, [found.root]):
            key = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:32]
            grids.append(Picture(int(number.group()), path, key))
    yield from sorted(grids)


def prompts_of(folder: Path, settings: Mapping[str, Any], found: Found) -> tuple[str, ...]:
    """The prompts of the grids, where the file that the run read lies below the folder and is still what it was."""
    given, digest = settings.get("prompts"), settings.get("prompts_sha256")
    if not isinstance(given, str) or not isinstance(digest, str) or "\0" in given:
        return ()
    name = Path(given).name
    for path in (Path(given), folder / name, folder.parent / name, found.root / name):
        if is_inside(path, [found.root]) and path.is_file():
            prompts = prompts_in(path, *version_of(path))
            if hashlib.sha256("\n".join(prompts).encode()).hexdigest() == digest:
                return tuple(prompts[i % len(prompts)] for i in range(GRID_PROMPTS))
    return ()


@functools.lru_cache(maxsize=64)
def prompts_in(path: Path, changed: int, size: int) -> tuple[str, ...]:
    """The prompts of this version of a file; () where it is none of prompts."""
    try:
        return tuple(read_prompts(path))
    except (UserError, OSError):
        return ()
