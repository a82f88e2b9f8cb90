"""Coverage after each pick, against distances written out."""

import numpy as np

from selection.coverage import coverage
from selection.curve import coverage_curve, draw, random_curves
from selection.rows import Rows
from tests.selection.data import distances, gaussian


def test_every_point_is_the_coverage_of_the_picks_so_far() -> None:
    x, chosen, already = 100 * gaussian(80, 4), [5, 70, 3, 3 + 8, 60], [9]
    for earlier in ([], already):
        curve = coverage_curve(Rows(x), chosen, earlier)
        assert curve.picks.tolist() == [1, 2, 3, 4, 5]
        near = [distances(x)[:, [*earlier, *chosen[:upto]]].min(axis=1) for upto in range(1, 6)]
        assert np.allclose(curve.mean, [each.mean() for each in near], rtol=1e-4)
        assert np.allclose(curve.radius, [each.max() for each in near], rtol=1e-4)


def test_few_points_and_few_rows_of_many() -> None:
    x = gaussian(500, 3)
    chosen = list(range(0, 500, 2))
    curve = coverage_curve(Rows(x), chosen, [], most_rows=100, most_points=7)
    assert len(curve.picks) == 7 and curve.picks[0] == 1 and curve.picks[-1] == 250
    assert curve.mean[-1] == coverage(x, chosen, most_rows=100)["mean_distance"]
    assert (np.diff(curve.mean) <= 0).all() and (np.diff(curve.radius) <= 0).all()


def test_random_curves_differ_and_repeat() -> None:
    x = gaussian(60, 3)
    first, second = (random_curves(Rows(x), 10, [4], seed=2, count=3) for _ in range(2))
    assert len({curve.mean[-1] for curve in first}) == 3
    assert all((one.mean == two.mean).all() for one, two in zip(first, second, strict=True))
    assert 4 not in draw(x, 59, [4], 0)
