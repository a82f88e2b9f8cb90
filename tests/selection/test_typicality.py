"""TypiClust: the formula, one row from each cluster, and data in which most rows are copies."""

import numpy as np
import pytest

from mmrlhf.errors import UserError
from selection.typicality import typicality, typicality_choice
from tests.selection.data import distances, gaussian, seeded

CENTRES = 40 * np.eye(4)


def clusters(sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Well separated clusters of the given sizes, and which row is in which."""
    member = np.repeat(np.arange(len(sizes)), sizes)
    return (CENTRES[member] + gaussian(len(member), 4)).astype(np.float32), member


def test_typicality_is_one_over_the_mean_distance_to_the_nearest() -> None:
    x = gaussian(50, 3)
    expected = 1 / np.sort(distances(x), axis=1)[:, 1:6].mean(axis=1)
    np.testing.assert_allclose(typicality(x, 5, block=7), expected, rtol=1e-4)
    assert typicality(x[:1], 5).tolist() == [0]
    assert np.isfinite(typicality(np.ones((4, 3), np.float32), 5)).all()


def test_each_cluster_gives_one_and_its_most_typical() -> None:
    x, member = clusters((60, 50, 40, 30))
    choice = typicality_choice(x, 4, generator=seeded())
    assert member[choice.indices].tolist() == [0, 1, 2, 3]
    for index, gain in zip(choice.indices, choice.gains, strict=True):
        own = np.flatnonzero(member == member[index])
        expected = 1 / np.sort(distances(x[own]), axis=1)[:, 1:21].mean(axis=1)
        assert index == own[expected.argmax()]
        assert gain == pytest.approx(expected.max(), rel=1e-3)


def test_clusters_covered_already_come_later() -> None:
    x, member = clusters((60, 50, 40, 30))
    choice = typicality_choice(x, 2, already=[0, 61], generator=seeded())
    assert member[choice.indices].tolist() == [2, 3]


def test_copies_and_large_budgets() -> None:
    x = np.repeat(gaussian(5, 3), 20, axis=0)
    picks = typicality_choice(x, 98, already=[0, 1], generator=seeded()).indices.tolist()
    assert sorted(picks) == list(range(2, 100))
    assert len({pick // 20 for pick in typicality_choice(x, 5, generator=seeded()).indices.tolist()}) == 5


def test_the_same_for_the_same_generator() -> None:
    x = gaussian(300, 5)
    first, again = (typicality_choice(x, 12, generator=seeded(1)).indices.tolist() for _ in "ab")
    assert first == again


def test_a_budget_that_is_too_large_is_told() -> None:
    with pytest.raises(UserError, match="got budget 7, allowed is 1 to 6"):
        typicality_choice(gaussian(6, 2), 7, generator=seeded())
