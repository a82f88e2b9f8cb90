"""What other commands measured below the folder: calibration of a reward, drift between rounds, scores of images."""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from apps.dashboard_files import printable, version_of

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Bin(NamedTuple):
    """Mean prediction, observed share and number of predictions."""

    predicted: float
    observed: float
    size: float


class Calibration(NamedTuple):
    """Reliability curves by name (before and after a temperature was fitted), and figures beside them."""

    name: str
    curves: tuple[tuple[str, tuple[Bin, ...]], ...]
    figures: tuple[tuple[str, float], ...]


class Check(NamedTuple):
    """One test of whether scores have drifted."""

    name: str
    verdict: str
    says: str


class Drift(NamedTuple):
    """What `mmrlhf reward drift` found: the shares of both rounds in bins of the scores, whose inner edges are given."""

    name: str
    verdict: str
    checks: tuple[Check, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    edges: tuple[float, ...]


class Scores(NamedTuple):
    """The spread of the `size` scores in a file: its 5, 25, 50, 75 and 95 % quantiles."""

    name: str
    size: int
    quantiles: tuple[float, ...]


def read_reports(files: Sequence[tuple[str, Path]]) -> tuple[tuple[Calibration, ...], tuple[Drift, ...]]:
    """The reliability diagrams and drift reports among JSON files, given as (name, path)."""
    calibrations, drifts = [], []
    for name, path in files:
        figures = read_json(path, *version_of(path))
        if curves := curves_of(figures):
            told = ("agreement", "ece", "ece_before", "ece_after", "n")
            shown = [(key, float(figures[key])) for key in told if isinstance(figures.get(key), int | float)]
            calibrations.append(Calibration(name, curves, tuple(shown)))
        if drift := drift_of(name, figures):
            drifts.append(drift)
    return tuple(calibrations), tuple(drifts)


@functools.lru_cache(maxsize=1024)
def read_json(path: Path, changed: int, size: int) -> Mapping[str, Any]:
    """The object in this version of a file, {} for one that nothing here could be shown of."""
    try:
        text = path.read_bytes()
        figures = json.loads(text) if b'"reliability"' in text or b'"stability"' in text else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return figures if isinstance(figures, dict) else {}


def curves_of(figures: Mapping[str, Any]) -> tuple[tuple[str, tuple[Bin, ...]], ...]:
    """The reliability curves of `reward eval` (before and after calibration) or of a quickstart; () where there are none."""
    calibration, curves = figures.get("calibration"), figures.get("reliability")
    if isinstance(calibration, dict):
        nested = {name: each.get("reliability") for name, each in calibration.items() if isinstance(each, dict)}
        curves = {name: curve for name, curve in nested.items() if curve} or curves
    named = curves if isinstance(curves, dict) else {"": curves}
    try:
        found = [
            (printable(str(name)), tuple(Bin(*(finite(each[key]) for key in Bin._fields)) for each in curve))
            for name, curve in named.items()
            if isinstance(curve, list) and curve
        ]
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(found)


def drift_of(name: str, figures: Mapping[str, Any]) -> Drift | None:
    """The report of `reward drift`, None where this is none."""
    try:
        stability = figures["stability"]
        checks = [
            Check(*(printable(str(check[key])) for key in ("check", "verdict", "says"))) for check in figures["checks"]
        ]
        shares = {key: tuple(finite(value) for value in stability[key]) for key in ("before", "after", "edges")}
    except (KeyError, TypeError, ValueError):
        return None
    return Drift(name, printable(str(figures.get("verdict", ""))), tuple(checks), **shares)


def finite(value: Any) -> float:
    """A number of JSON. ValueError for one that cannot be drawn."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not a finite number")
    return number


def read_scores(files: Sequence[tuple[str, Path]]) -> tuple[Scores, ...]:
    """The spread of each file of `mmrlhf reward score`, given as (name, path); other files are passed over."""
    found = ((name, scores_in(path, *version_of(path))) for name, path in files)
    return tuple(
        Scores(name, len(scores), tuple(map(float, np.quantile(scores, QUANTILES)))) for name, scores in found if scores
    )


@functools.lru_cache(maxsize=256)
def scores_in(path: Path, changed: int, size: int) -> tuple[float, ...]:
    """Every number under `score` in this version of a file of JSON lines; () where a line is no object."""
    scores = []
    try:
        for row in path.read_bytes().splitlines():
            score = json.loads(row).get("score")
            if isinstance(score, int | float) and math.isfinite(score):
                scores.append(float(score))
    except (OSError, ValueError, AttributeError, RecursionError, OverflowError):
        return ()
    return tuple(scores)
