import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.statistics import bootstrap_ci
from vlm.benchmarks.pooled import Columns, binary, binary_row, percent, pooled, totals


def share(sums: Columns) -> dict[str, np.ndarray]:
    return {"share": percent(sums["part"], sums["whole"])}


def test_the_interval_of_a_mean_is_the_bootstrap_of_the_core() -> None:
    """Where every denominator is 1 a pooled ratio is a mean, whose interval the core computes row by row."""
    values = np.random.default_rng(1).integers(0, 2, size=300)
    found = pooled([{"part": int(value), "whole": 1} for value in values], share)
    assert found["share"] == pytest.approx(100 * values.mean())
    assert found["share_ci95"] == pytest.approx([100 * bound for bound in bootstrap_ci(values)], abs=0.8)


def test_rows_of_a_unit_are_resampled_together() -> None:
    """Of two units, one all right and one all wrong, a sample has none, half or all: the interval is everything."""
    rows = [{"part": float(n < 50), "whole": 1.0} for n in range(100)]
    assert pooled(rows, share, units=["a"] * 50 + ["b"] * 50)["share_ci95"] == [0, 100]
    low, high = pooled(rows, share)["share_ci95"]
    assert 35 < low < 45 and 55 < high < 65


def test_what_is_undefined_is_none() -> None:
    assert pooled([{"part": 0, "whole": 0}], share) == {"share": None, "share_ci95": None}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(3, 9)), min_size=1, max_size=20), st.randoms())
def test_order_does_not_matter_and_the_interval_is_within_bounds(counts: list[tuple[int, int]], random: object) -> None:
    rows = [{"part": part, "whole": whole} for part, whole in counts]
    shuffled = sorted(rows, key=lambda row: random.random())  # type: ignore[attr-defined]
    found = pooled(rows, share)
    assert found == pooled(shuffled, share)
    low, high = found["share_ci95"]
    assert 0 <= low <= high <= 100 and 0 <= found["share"] <= 100
    assert totals(rows, share) == {"share": found["share"]}


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_binary_figures_are_their_definitions(answers: list[tuple[bool, bool]]) -> None:
    found = totals([binary_row(*answer) for answer in answers], binary)
    hits = answers.count((True, True))
    said, true = (sum(column) for column in zip(*answers, strict=True))
    assert found["accuracy"] == pytest.approx(100 * sum(a == b for a, b in answers) / len(answers), abs=1e-5)
    assert found["precision"] == (pytest.approx(100 * hits / said, abs=1e-5) if said else None)
    assert found["recall"] == (pytest.approx(100 * hits / true, abs=1e-5) if true else None)
    if hits:
        harmonic = 2 / (said / hits + true / hits)
        assert found["f1"] == pytest.approx(100 * harmonic, abs=1e-5)
    else:
        assert found["f1"] == (0 if said or true else None)
