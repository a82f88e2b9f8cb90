"""Rows read in blocks equal rows in memory; coverage equals all distances taken one by one."""

import numpy as np
import pytest

from mmrlhf.errors import UserError
from selection.coverage import coverage
from selection.rows import Rows
from tests.selection.data import distances, gaussian


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_streamed_rows_equal_kept_rows(dtype: type, unit: bool) -> None:
    x: np.ndarray = (gaussian(50, 5) * 3 + 7).astype(dtype)
    kept, streamed = Rows(x, unit=unit), Rows(x, unit=unit, keep_bytes=0)
    assert kept.kept is not None and streamed.kept is None
    some = np.array([3, 49, 3])
    assert (kept[some] == streamed[some]).all() and (kept[10:20] == streamed[10:20]).all()
    assert (kept.raw(some) == x[some].astype(np.float64)).all()


def test_shifting_and_scaling_keeps_distances_and_unit_rows_have_length_1() -> None:
    x = gaussian(30, 4) * 5 + 100
    rows = Rows(x)
    np.testing.assert_allclose(distances(rows[:30]) / rows.scale, distances(x), rtol=1e-4, atol=1e-4)
    assert np.abs(rows[:30]).max() <= 1
    x[3] = 0
    lengths = np.linalg.norm(Rows(x, unit=True)[:30], axis=1)
    np.testing.assert_allclose(lengths, np.where(np.arange(30) == 3, 0, 1), atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e10])
def test_coverage(scale: float) -> None:
    x = gaussian(120, 6) * np.float32(scale)
    chosen = [5, 70, 100]
    nearest = distances(x)[:, chosen].min(axis=1)
    measured = coverage(x, chosen)
    assert measured["radius"] == pytest.approx(nearest.max(), rel=1e-4)
    assert measured["mean_distance"] == pytest.approx(nearest.mean(), rel=1e-4)
    assert measured["rows_measured"] == 120
    assert coverage(x, list(range(120))) == {"radius": 0.0, "mean_distance": 0.0, "rows_measured": 120}
    assert coverage(x, chosen, most_rows=40)["rows_measured"] == 40


def test_coverage_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="no row is chosen"):
        coverage(gaussian(3, 2), [])
