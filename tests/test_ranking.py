"""Bradley–Terry against choix and a generalised linear model, its intervals against how often they cover, and Elo by hand."""

from itertools import combinations

import choix
import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit

from mmrlhf.errors import UserError
from mmrlhf.ranking import bradley_terry, elo
from tests.datasets import annotators


def comparisons(truth: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random pairs of items and who won by the model."""
    generator = np.random.default_rng(seed)
    first = generator.integers(len(truth), size=count)
    second = (first + generator.integers(1, len(truth), size=count)) % len(truth)
    labels = (generator.random(count) < expit(truth[first] - truth[second])).astype(float)
    return first, second, labels


def winners(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> list[tuple[int, int]]:
    """(winner, loser), as choix wants it; a tie is a win of half weight each, so that everything counts twice."""
    found = []
    for one, other, label in zip(first.tolist(), second.tolist(), labels.tolist(), strict=True):
        found += [(one, other)] * round(2 * label) + [(other, one)] * round(2 - 2 * label)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_strengths_are_those_of_choix(seed: int) -> None:
    truth = np.random.default_rng(seed).normal(size=8)
    first, second, labels = comparisons(truth, 300, seed)
    labels[::7] = 0.5
    data = winners(first, second, labels)
    np.testing.assert_allclose(bradley_terry(first, second, labels, 8).scores, choix.ilsr_pairwise(8, data), atol=1e-6)
    found = bradley_terry(first, second, labels, 8, precision=0.6).scores
    np.testing.assert_allclose(found, choix.opt_pairwise(8, data, alpha=0.6, tol=1e-12), atol=1e-5)


def test_scores_and_intervals_are_those_of_a_generalised_linear_model() -> None:
    """Logistic regression on who is compared, the first item as the reference."""
    first, second, labels = comparisons(np.array([0.0, 1.0, -0.5, 0.7, 2.0]), 400, 3)
    design = np.zeros((len(first), 5))
    design[np.arange(len(first)), first] += 1
    design[np.arange(len(first)), second] -= 1
    model = sm.GLM(labels, design[:, 1:], family=sm.families.Binomial()).fit(tol=1e-12)
    found = bradley_terry(first, second, labels, 5)
    np.testing.assert_allclose(found.scores[1:] - found.scores[0], model.params, atol=1e-7)
    contrast = np.hstack([-np.ones((4, 1)), np.eye(4)])
    np.testing.assert_allclose(contrast @ found.covariance @ contrast.T, model.cov_params(), atol=1e-7)
    centre = np.vstack([np.zeros(4), np.eye(4)]) - 1 / 5  # from differences to the first, to differences to the mean
    deviation = np.sqrt(np.diag(centre @ model.cov_params() @ centre.T))
    np.testing.assert_allclose(found.high - found.scores, 1.959964 * deviation, rtol=1e-5)
    np.testing.assert_allclose(found.scores - found.low, 1.959964 * deviation, rtol=1e-5)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    truth = np.array([-1.0, -0.3, 0.0, 0.4, 0.9])
    hits = 0
    for seed in range(200):
        found = bradley_terry(*comparisons(truth, 200, seed), 5, level=0.9)
        hits += int(((found.low <= truth) & (truth <= found.high)).sum())
    assert 860 <= hits <= 935  # of 1000


def test_real_ratings_as_comparisons_against_choix() -> None:
    """Five people's quality of 400 real images: two of a prompt compared by each rater's ratings, strengths by prompt group."""
    if not annotators.FOLDER.is_dir():
        pytest.skip(f"no {annotators.FOLDER}: the public annotator tables are not here")
    by_image: dict[str, dict[str, int]] = {}
    for rating in annotators.ratings("sdv2")[:300]:
        by_image.setdefault(str(rating.image), {})[rating.annotator] = rating.rating
    images = sorted(by_image)[:30]
    rows = [
        (i, j, 0.5 + 0.5 * np.sign(by_image[images[i]][rater] - by_image[images[j]][rater]))
        for i, j in combinations(range(len(images)), 2)
        for rater in by_image[images[i]].keys() & by_image[images[j]].keys()
    ]
    first, second, labels = (np.array(column) for column in zip(*rows, strict=True))
    found = bradley_terry(first, second, labels, len(images))
    np.testing.assert_allclose(
        found.scores, choix.ilsr_pairwise(len(images), winners(first, second, labels)), atol=1e-6
    )
    means = [np.mean(list(by_image[image].values())) for image in images]
    assert np.corrcoef(found.scores, means)[0, 1] > 0.8


def test_two_items_are_the_log_odds() -> None:
    first, second, labels = np.zeros(10, dtype=int), np.ones(10, dtype=int), np.array([1.0] * 7 + [0.0] * 3)
    found = bradley_terry(first, second, labels, 2)
    assert found.scores[0] - found.scores[1] == pytest.approx(np.log(7 / 3))
    assert found.covariance[0, 0] == pytest.approx(1 / (10 * 0.7 * 0.3) / 4)


@pytest.mark.parametrize(
    ("first", "second", "labels", "options", "message"),
    [
        ([0, 1], [1, 2], [1.0, 1.0], {}, "of 3 groups of items some never won"),
        ([0, 0], [1, 1], [1.0, 0.0], {}, "of 2 groups"),
        ([], [], [], {}, "got 0 comparisons of 3 items"),
        ([0], [0], [1.0], {}, "two different ones from 0 to 2"),
        ([0], [3], [1.0], {}, "two different ones from 0 to 2"),
        ([0], [1], [1.5], {}, "outside 0 to 1"),
        ([0], [1], [0.5], {"level": 95.0}, "level 95.0"),
        ([0], [1], [0.5], {"precision": -1.0}, "precision -1.0"),
    ],
)
def test_what_has_no_strengths_is_refused(first: list, second: list, labels: list, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bradley_terry(np.array(first, dtype=int), np.array(second, dtype=int), np.array(labels), 3, **options)


def test_with_a_prior_nothing_has_to_be_connected() -> None:
    found = bradley_terry(np.array([0]), np.array([1]), np.array([1.0]), 3, precision=1.0)
    assert found.scores[0] > found.scores[2] > found.scores[1] and found.scores.sum() == pytest.approx(0)


def test_elo_by_hand() -> None:
    found = elo(np.array([0, 1]), np.array([1, 2]), np.array([1.0, 0.5]), 3)
    after = 1500 - 16
    expected = 1 / (1 + 10 ** ((1500 - after) / 400))
    np.testing.assert_allclose(found, [1516, after + 32 * (0.5 - expected), 1500 - 32 * (0.5 - expected)])
    assert found.sum() == pytest.approx(4500)


def test_elo_comes_to_the_strengths() -> None:
    """Many comparisons and a small gain: ratings are strengths times scale / ln 10."""
    truth = np.array([-1.0, 0.0, 0.3, 0.7])
    found = elo(*comparisons(truth, 60_000, 0), 4, gain=0.5)
    np.testing.assert_allclose((found - 1500) * np.log(10) / 400, truth, atol=0.1)
