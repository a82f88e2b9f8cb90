"""Figures of pairs, counted by hand."""

import json
from pathlib import Path

import pytest

from mmrlhf.data import Pair, write_pairs
from mmrlhf.datasets.stats import StatsConfig, stats
from tests.datasets.files import touch


def test_stats_count_ties_contradictions_and_the_side_preferred(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png", "c.png")
    a, b, c = (tmp_path / name for name in ("a.png", "b.png", "c.png"))
    pairs = [Pair("x", a, b, 1.0), Pair("x", b, a, 1.0), Pair("x", a, c, 0.5), Pair("y", a, c, 0.0),
             Pair("y", a, b, 0.8), Pair("y", b, c, 1.0, has_label=False)]  # fmt: skip
    write_pairs(pairs, tmp_path / "pairs.jsonl")
    figures = stats(StatsConfig(tmp_path / "pairs.jsonl", tmp_path / "figures.json"))
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    assert figures["pairs"] == 6 and figures["without_label"] == 1 and figures["prompts"] == 2
    assert figures["images"] == 3 and figures["uses_an_image"] == 4.0 and figures["contradictions"] == 1
    assert figures["share_of_ties"] == pytest.approx(0.2) and figures["share_of_soft_labels"] == pytest.approx(0.2)
    assert figures["first_preferred"] == pytest.approx(2 / 3)
    low, high = figures["first_preferred_ci95"]
    assert low < 2 / 3 < high
