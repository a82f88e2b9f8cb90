"""Charts: axes, gaps, long lines made short, which figures share a chart, and texts that stay texts."""

import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.dashboard_charts import main_figures, metric_chart, reward_spreads, shown_at_first, smoothed, usual_charts
from apps.dashboard_plots import (
    HEIGHT,
    LEFT,
    MOST_POINTS,
    RIGHT,
    WIDTH,
    Box,
    Frame,
    Line,
    bar_chart,
    box_chart,
    figure,
    line_chart,
    nice_ticks,
    reliability_chart,
    span,
    thinned,
)
from apps.dashboard_reports import Scores
from apps.dashboard_runs import Run, read_board
from tests.apps.test_dashboard_runs import make_run

EVIL = "<script>alert('x')</script>\"&"
FINITE = st.floats(-1e9, 1e9, allow_nan=False)


def runs_of(tmp_path: Path, **lines: list[dict[str, Any]]) -> tuple[Run, ...]:
    for name, own in lines.items():
        make_run(tmp_path / name, own)
    return read_board([tmp_path]).runs


def coordinates(svg: str) -> list[tuple[float, float]]:
    """The corners of the lines of a chart."""
    paths = re.findall(r'd="([^"]+)" class="line', svg)
    return [(float(x), float(y)) for path in paths for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path)]


@given(low=FINITE, size=st.floats(1e-6, 1e9))
def test_ticks_are_few_round_and_within(low: float, size: float) -> None:
    high = low + size
    if not high > low + 1e-9 * max(abs(low), 1):
        return
    ticks = nice_ticks(low, high)
    assert 1 <= len(ticks) <= 7
    assert all(low - 1e-6 * size <= tick <= high + 1e-6 * size for tick in ticks)
    steps = [b - a for a, b in zip(ticks, ticks[1:], strict=False)]
    assert all(step == pytest.approx(steps[0]) for step in steps)


def test_whole_steps_get_whole_ticks() -> None:
    assert nice_ticks(0.0, 2.0, whole=True) == [0.0, 1.0, 2.0]
    assert nice_ticks(0.0, 100.0, whole=True) == [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]


def test_the_corners_of_the_frame_are_those_of_the_picture() -> None:
    frame = Frame((2.0, 4.0), (-1.0, 1.0))
    assert frame.at(2.0, -1.0)[0] == LEFT and frame.at(4.0, 1.0)[0] == WIDTH - RIGHT
    assert frame.at(3.0, 0.0)[0] == (LEFT + WIDTH - RIGHT) / 2
    assert frame.at(2.0, -1.0)[1] > frame.at(2.0, 1.0)[1]  # up is smaller


@pytest.mark.parametrize("values", [[], [math.nan], [0.0], [5.0, 5.0], [-3.0], [1e300, 1e300], [1e-30]])
def test_a_span_is_never_empty(values: list[float]) -> None:
    low, high = span(values, 0.06)
    assert low < high and all(low <= value <= high for value in values if math.isfinite(value))


@given(st.lists(st.one_of(FINITE, st.sampled_from([math.nan, math.inf, -math.inf])), max_size=30))
def test_any_values_give_a_picture_that_stays_within(values: list[float]) -> None:
    svg = line_chart("loss", [Line("run", 0, [float(i) for i in range(len(values))], values)], "epoch")
    ET.fromstring(str(svg))
    corners = coordinates(svg)
    assert len(corners) == sum(map(math.isfinite, values))
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in corners)


def test_a_value_that_is_no_number_leaves_a_gap() -> None:
    svg = str(line_chart("loss", [Line("run", 0, [0.0, 1.0, 2.0, 3.0], [1.0, math.nan, 2.0, 3.0])], "epoch"))
    (path,) = re.findall(r'd="([^"]+)" class="line', svg)
    assert re.sub(r"[^ML]", "", path) == "MML"


def test_a_single_point_is_a_dot() -> None:
    assert 'class="dot s1"' in line_chart("loss", [Line("run", 1, [0.0], [1.0])], "epoch")


def test_a_long_line_keeps_its_ends_and_peaks() -> None:
    y = [0.0] * 5000
    y[1234], y[4321] = 9.0, -7.0
    short = thinned(Line("run", 0, [float(i) for i in range(5000)], y))
    assert len(short.x) <= MOST_POINTS + 4 and len(short.x) == len(short.y)
    assert (1234.0, 9.0) in set(zip(short.x, short.y, strict=True)) and min(short.y) == -7.0
    assert short.x[0] == 0.0 and short.x[-1] == 4999.0 and list(short.x) == sorted(short.x)


def test_names_stay_texts_in_every_chart() -> None:
    charts = [
        line_chart(EVIL, [Line(EVIL, 0, [0.0, 1.0], [1.0, 2.0], low=[0.0, 1.0], high=[2.0, 3.0])], EVIL),
        box_chart(EVIL, [Box(0.0, [1.0, 2.0, 3.0, 4.0, 5.0], 0, EVIL)], EVIL, [EVIL]),
        reliability_chart(EVIL, [(EVIL, [(0.1, 0.2, 3.0)])]),
        bar_chart(EVIL, [0.5, 0.5], [0.4, 0.6], [EVIL, "b"], EVIL),
    ]
    for chart in charts:
        root = ET.fromstring(str(chart))
        assert root.get("aria-label") == EVIL
        assert not [element for element in root.iter() if element.tag == "script"]


def test_boxes_and_bars_are_as_high_as_their_values() -> None:
    root = ET.fromstring(str(bar_chart("drift", [0.5, 0.25], [0.25, 0.5], ["a", "b"], "score")))
    heights = [float(bar.attrib["height"]) for bar in root.iter("rect")]
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.2) and heights[0] == heights[3]
    root = ET.fromstring(str(box_chart("scores", [Box(0.0, [0.0, 1.0, 2.0, 3.0, 4.0], 0, "x")], "file")))
    (box,) = root.iter("rect")
    whisker = re.findall(r"[\d.]+", root.findall(".//path[@class='thin']")[0].attrib["d"])
    assert float(box.attrib["height"]) == pytest.approx((float(whisker[1]) - float(whisker[2])) / 2, abs=0.2)


def test_figures_are_short() -> None:
    assert [figure(value) for value in (0.123456, -2.0, 1e-7, 12345678.0)] == ["0.1235", "−2", "1e−07", "1.235e+07"]


@given(st.lists(FINITE, min_size=1, max_size=20), st.floats(0, 0.999))
def test_smoothing_is_a_weighted_mean_of_the_past(values: list[float], weight: float) -> None:
    found = smoothed(values, weight)
    for t, value in enumerate(found):
        weights = [weight ** (t - i) for i in range(t + 1)]
        mean = sum(w * x for w, x in zip(weights, values, strict=False)) / sum(weights)
        assert value == pytest.approx(mean, rel=1e-6, abs=1e-3)
    assert smoothed(values, 0.0) == values


def test_smoothing_leaves_gaps_as_they_are() -> None:
    found = smoothed([1.0, math.nan, 3.0], 0.5)
    assert found[0] == 1.0 and math.isnan(found[1]) and found[2] == pytest.approx((0.5 * 1 + 3) / 1.5)


def test_each_usual_chart_is_there_where_a_run_has_its_figures(tmp_path: Path) -> None:
    line = {"epoch": 0, "loss": 1.0, "reward_mean": 1.0, "gold_mean": 0.5, "kl": 0.1, "clip_fraction": 0.2}
    runs = runs_of(
        tmp_path, a=[line, line | {"epoch": 1}], b=[{"epoch": 0, "held_out_agreement": 0.7, "held_out_loss": 0.6}]
    )
    charts = usual_charts(runs, {"a": 0, "b": 1}, 0.0)
    titles = ["loss", "learned reward", "held-out reward", "KL to the start, nats", "clip fraction", "agreement"]
    assert [chart.title for chart in charts] == titles
    assert [key.label for key in charts[0].keys] == ["loss", "held_out_loss"] and charts[0].keys[0].dash == "none"
    assert [key.label for key in charts[2].keys] == []  # one figure needs no pattern


@pytest.mark.parametrize(
    ("name", "held_out"),
    [("gold_mean", True), ("held_out_reward", True), ("validation_reward_mean", True), ("eval_reward", True), ("gold_std", False),
     ("reward_mean", False), ("held_out_agreement", False)],
)  # fmt: skip
def test_held_out_rewards_are_known_by_their_names(tmp_path: Path, name: str, held_out: bool) -> None:
    runs = runs_of(tmp_path, a=[{"epoch": 0, name: 1.0}])
    assert (name in main_figures(runs)["held-out reward"]) is held_out


def test_a_run_without_usual_figures_shows_others_at_first(tmp_path: Path) -> None:
    lines = [{"round": i, "chair_i": 3.0, "chair_i_ci95": [2.0, 4.0], "marked": 5, "seconds": 1.0} for i in range(3)]
    runs = runs_of(tmp_path, a=lines, b=[{"epoch": 0, "loss": 1.0, "diversity": 0.1}])
    assert shown_at_first(runs) == ["chair_i", "marked"] and shown_at_first(runs[1:]) == []
    chart = metric_chart("chair_i", ["chair_i"], runs, {"a": 0, "b": 1}, 0.0)
    assert chart is not None and "polygon" in chart.svg
    faint = metric_chart("chair_i", ["chair_i"], runs, {"a": 0, "b": 1}, 0.5)
    assert faint is not None and "polygon" not in faint.svg and "faint" in faint.svg
    assert metric_chart("x", ["x"], runs, {"a": 0, "b": 1}, 0.0) is None


def test_rewards_by_round_are_boxes_bands_or_nothing(tmp_path: Path) -> None:
    kept = [{"epoch": i, "rewards": [float(i), i + 1.0, i + 2.0]} for i in range(100)]
    spread = [{"epoch": i, "reward_mean": 1.0, "reward_std": 0.5} for i in range(3)]
    runs = runs_of(tmp_path, kept=kept, spread=spread, neither=[{"epoch": 0, "loss": 1.0}])
    scores = (Scores("round-1/scores.jsonl", 5, (0.0, 1.0, 2.0, 3.0, 4.0)),)
    charts = reward_spreads(runs, {"kept": 0, "neither": 1, "spread": 2}, scores)
    assert [chart.title for chart in charts] == [
        "kept: rewards by epoch",
        "spread: rewards by epoch",
        "files of scores",
    ]
    assert charts[0].svg.count("<rect") == 16 and "epoch 99: median 100" in charts[0].svg
    assert "polygon" in charts[1].svg and charts[2].says == "1: round-1/scores.jsonl (5)"
