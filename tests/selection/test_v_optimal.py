"""V-optimal design: the greedy that inverts every matrix, a closed form, and what sets it apart from D-optimal."""

import numpy as np
import pytest
from hypothesis import given, settings

from mmrlhf.errors import UserError
from selection.d_optimal import d_optimal
from selection.v_optimal import v_optimal
from tests.selection.data import gaussian, seeded
from tests.selection.invariants import Request, check_choice, check_refusals, requests
from tests.selection.test_d_optimal import information


def doubt(matrix: np.ndarray, added: np.ndarray) -> float:
    """Mean over the pairs of p(1-p)·zᵀA⁻¹z."""
    return float(np.einsum("ij,nji->n", np.linalg.inv(matrix), added).mean())


@pytest.mark.parametrize("already", [[], [3, 17]])
@pytest.mark.parametrize("ridge", [1e-3, 1.0, 10.0])
@pytest.mark.parametrize("scored", [False, True])
def test_same_picks_and_gains_as_the_greedy_with_every_inverse(already: list[int], ridge: float, scored: bool) -> None:
    z = gaussian(60, 5, dtype=np.float64)
    margins = 2 * gaussian(1, 60, 1, np.float64)[0] if scored else None
    choice = v_optimal(z, 25, already=already, generator=seeded(), margins=margins, ridge=ridge)
    prior, added = information(z, margins, ridge)
    present, chosen = prior + added[already].sum(axis=0), list(already)
    for index, gain in zip(choice.indices, choice.gains, strict=True):
        values = {i: doubt(present, added) - doubt(present + added[i], added) for i in range(60) if i not in chosen}
        assert index == max(values, key=lambda i: values[i])
        assert gain == pytest.approx(values[index], rel=1e-3)
        present += added[index]
        chosen.append(int(index))


def test_a_first_pair_gains_the_closed_form() -> None:
    z = np.array([[3.0, 0.0], [0.0, 1.0]])  # v|z|² = 9/4, 1/4; prior = mean / 2 = 5/8; uᵀBu = 18/5, 2/5
    choice = v_optimal(z, 2, generator=seeded())
    assert choice.indices.tolist() == [0, 1]
    assert choice.gains.tolist() == pytest.approx([(18 / 5) ** 2 / (23 / 5) / 2, (2 / 5) ** 2 / (7 / 5) / 2])
    assert choice.why[0].startswith(f"lowers the mean doubt by {(18 / 5) ** 2 / (23 / 5) / 4:.2%}")


def test_an_outlier_comes_first_by_d_optimal_and_last_here() -> None:
    alike = np.array([1.0, 0.0]) + 0.01 * gaussian(40, 2, dtype=np.float64)
    z = np.concatenate([alike, [[0.0, 1.5]]])
    assert d_optimal(z, 1, generator=seeded()).indices[0] == 40
    assert v_optimal(z, 1, generator=seeded()).indices[0] < 40


def test_swapped_pairs_and_scale_change_nothing() -> None:
    z, margins = gaussian(100, 6, dtype=np.float64), gaussian(1, 100, 1, np.float64)[0]
    sign = np.where(np.random.default_rng(0).random(100) < 0.5, -1, 1)
    expected = v_optimal(z, 30, generator=seeded(), margins=margins)
    for scale in (1.0, 1e-30, 1e12):
        choice = v_optimal(scale * sign[:, None] * z, 30, generator=seeded(), margins=sign * margins)
        assert choice.indices.tolist() == expected.indices.tolist()
        np.testing.assert_allclose(choice.gains, expected.gains, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(request=requests())
def test_properties(request: Request) -> None:
    assert (check_choice(v_optimal, request).gains >= 0).all()


def test_what_cannot_be_done_is_told() -> None:
    check_refusals(v_optimal)
    with pytest.raises(UserError, match="got ridge 0.0"):
        v_optimal(gaussian(4, 2), 1, generator=seeded(), ridge=0.0)
    with pytest.raises(UserError, match="margins of row 1 is nan"):
        v_optimal(gaussian(2, 2), 1, generator=seeded(), margins=np.array([0.0, np.nan]))
