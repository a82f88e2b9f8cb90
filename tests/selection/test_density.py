"""Information density: the formula over all pairs of rows, what beta does, and ties."""

import numpy as np
import pytest
from hypothesis import given, settings

from mmrlhf.errors import UserError
from selection.density import information_density, mean_similarity
from selection.rows import Rows
from tests.selection.data import cosines, gaussian, seeded
from tests.selection.invariants import Request, check_choice, check_refusals, requests


def test_mean_similarity_is_the_mean_over_all_pairs() -> None:
    x = gaussian(300, 5) + np.float32(0.5)
    np.testing.assert_allclose(mean_similarity(Rows(x, unit=True)), cosines(x).mean(axis=1), rtol=1e-5)
    streamed = mean_similarity(Rows(x, unit=True, keep_bytes=0))
    assert (streamed == mean_similarity(Rows(x, unit=True))).all()


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_choice_and_gains_are_those_of_the_formula(beta: float) -> None:
    x, uncertainty = gaussian(200, 4), np.random.default_rng(1).random(200)
    choice = information_density(x, 20, already=[3, 7], generator=seeded(), uncertainty=uncertainty, beta=beta)
    scores = uncertainty * cosines(x).mean(axis=1) ** beta
    order = [index for index in np.argsort(-scores).tolist() if index not in (3, 7)]
    assert choice.indices.tolist() == order[:20]
    np.testing.assert_allclose(choice.gains, scores[order[:20]], rtol=1e-5)


def test_an_outlier_is_held_off_by_beta() -> None:
    x = np.concatenate([gaussian(50, 3) * np.float32(0.1) + np.float32(1), -np.ones((1, 3), np.float32)])
    uncertainty = np.append(np.full(50, 0.5), 0.6)
    assert information_density(x, 1, generator=seeded(), uncertainty=uncertainty, beta=0.0).indices[0] == 50
    assert information_density(x, 1, generator=seeded(), uncertainty=uncertainty).indices[0] < 50


def test_of_copies_the_lowest_row_comes_first() -> None:
    x = np.repeat(gaussian(5, 37), 30, axis=0)
    assert (np.diff(information_density(x, 30, generator=seeded()).indices) == 1).all()


@settings(max_examples=60, deadline=None)
@given(request=requests())
def test_properties(request: Request) -> None:
    check_choice(information_density, request)


def test_what_cannot_be_done_is_told() -> None:
    check_refusals(information_density)
    with pytest.raises(UserError, match="got beta -1"):
        information_density(gaussian(4, 2), 1, generator=seeded(), beta=-1.0)
    with pytest.raises(UserError, match="uncertainty of row 2 is -1, allowed is 0 or more"):
        information_density(gaussian(4, 2), 1, generator=seeded(), uncertainty=np.array([0, 1, -1, 0.0]))
