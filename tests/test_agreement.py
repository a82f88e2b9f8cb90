"""Agreement figures against documented values, an independent library, and what can be counted by hand."""

import inspect
from typing import Any

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats import inter_rater

from mmrlhf.agreement import (
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    pair_agreement,
    pairwise_agreement,
    rater_agreement,
)
from mmrlhf.errors import UserError
from mmrlhf.statistics import bootstrap_ci
from mmrlhf.types import Preference
from tests.datasets import annotators

NAN = float("nan")
# the reliability data of the worked example in Krippendorff's "Computing Krippendorff's Alpha-Reliability"
DOCUMENTED = np.array(
    [
        [NAN, NAN, NAN, NAN, NAN, 3, 4, 1, 2, 1, 1, 3, 3, NAN, 3],
        [1, NAN, 2, 1, 3, 3, 4, 3, NAN, NAN, NAN, NAN, NAN, NAN, NAN],
        [NAN, NAN, 2, 1, 3, 4, 4, NAN, 2, 1, 1, 3, 3, NAN, 4],
    ]
)
# four observers and twelve units: the example of the same text for every level of measurement
FOUR = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)


def vote(name: str, items: tuple[str, str], label: float, prompt: str = "p") -> Preference:
    return Preference(prompt, items, label, name, "human", items)


@pytest.mark.parametrize(
    ("a", "b", "credit"),
    [(1, 1, 1), (0, 0, 1), (0.5, 0.5, 1), (1, 0.5, 0.5), (0.5, 0, 0.5), (1, 0, 0), (0.8, 1, 1), (0.3, 0.9, 0)],
)
def test_the_tie_rule(a: float, b: float, credit: float) -> None:
    assert pair_agreement(float(a), float(b)) == pair_agreement(float(b), float(a)) == credit
    np.testing.assert_array_equal(pair_agreement(np.array([a, a]), [b, b]), [credit, credit])


def test_an_abstention_stays_one() -> None:
    assert np.isnan(pair_agreement(NAN, 1.0))


def test_rater_agreement_counts_shared_pairs_in_either_order() -> None:
    preferences = [
        vote("ada", ("x", "y"), 0.0),  # superseded by ada's last answer
        vote("ada", ("x", "y"), 1.0),
        vote("bo", ("y", "x"), 0.0),  # the same outcome, the items the other way round
        vote("ada", ("x", "z"), 1.0),
        vote("bo", ("x", "z"), 0.5),
        vote("ada", ("x", "y"), 1.0, prompt="q"),  # another prompt is another pair
        vote("cy", ("x", "z"), 0.0),
        vote("alone", ("u", "v"), 1.0),
    ]
    mean, rows = rater_agreement(preferences)
    table = {(row.rater_0, row.rater_1): (row.agreement, row.pairs) for row in rows}
    assert table == {("ada", "bo"): (0.75, 2), ("ada", "cy"): (0.0, 1), ("bo", "cy"): (0.5, 1)}
    assert mean == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)


def test_rater_agreement_without_shared_pairs_is_nan() -> None:
    mean, rows = rater_agreement([vote("ada", ("x", "y"), 1.0)])
    assert np.isnan(mean) and rows == []
    assert np.isnan(rater_agreement([])[0])


def test_krippendorff_s_documented_values() -> None:
    assert krippendorff_alpha(DOCUMENTED) == pytest.approx(0.691, abs=5e-4)
    assert krippendorff_alpha(DOCUMENTED, "interval") == pytest.approx(0.811, abs=5e-4)
    assert krippendorff_alpha(FOUR) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(FOUR, "ordinal") == pytest.approx(0.815, abs=5e-4)
    assert krippendorff_alpha(FOUR, "interval") == pytest.approx(0.849, abs=5e-4)


def test_pairwise_agreement_counts_pairs_of_raters() -> None:
    ratings = np.array([[1.0, 2.0, NAN, 5.0], [1.0, 3.0, 4.0, NAN], [2.0, 3.0, 4.0, NAN]])
    assert pairwise_agreement(ratings) == pytest.approx((1 / 3 + 1 / 3 + 1) / 3)
    assert np.isnan(pairwise_agreement(np.array([[1.0, NAN], [NAN, 2.0]])))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0, NAN]), min_size=6, max_size=6), min_size=2, max_size=4))
def test_krippendorff_by_brute_force(rows: list[list[float]]) -> None:
    ratings = np.array(rows)
    units = [[v for v in column if v == v] for column in ratings.T]
    units = [unit for unit in units if len(unit) > 1]
    pooled = [v for unit in units for v in unit]

    def ordinal(a: float, b: float) -> float:
        low, high = sorted((a, b))
        return (sum(low <= v <= high for v in pooled) - (pooled.count(a) + pooled.count(b)) / 2) ** 2

    distances = {"nominal": lambda a, b: float(a != b), "ordinal": ordinal, "interval": lambda a, b: (a - b) ** 2}
    for level, distance in distances.items():
        expected = sum(distance(a, b) for a in pooled for b in pooled)
        observed = sum(distance(a, b) / (len(unit) - 1) for unit in units for a in unit for b in unit)
        alpha = krippendorff_alpha(ratings, level)  # type: ignore[arg-type]
        if expected == 0:
            assert np.isnan(alpha)
        else:
            assert alpha == pytest.approx(1 - (len(pooled) - 1) * observed / expected)


def independent_alpha(ratings: np.ndarray, level: Any) -> float:
    """The same by the package krippendorff."""
    return float(krippendorff.alpha(reliability_data=ratings, level_of_measurement=level))


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize("seed", range(3))
def test_alpha_is_that_of_an_independent_package(seed: int, level) -> None:
    generator = np.random.default_rng(seed)
    truth = generator.integers(1, 6, size=80)
    ratings = np.where(generator.random((5, 80)) < 0.6, truth, generator.integers(1, 6, size=(5, 80))).astype(float)
    ratings[generator.random(ratings.shape) < 0.3] = NAN
    assert krippendorff_alpha(ratings, level) == pytest.approx(independent_alpha(ratings, level), abs=1e-10)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize("model", ["clip", "if-xl", "sdv2"])
def test_alpha_of_real_raters_is_that_of_an_independent_package(model: str, level) -> None:
    """Five people's quality of 400 images each, 1 to 5."""
    if not annotators.FOLDER.is_dir():
        pytest.skip(f"no {annotators.FOLDER}: the public annotator tables are not here")
    columns: dict[str, list[float]] = {}
    for rating in annotators.ratings(model):
        columns.setdefault(str(rating.image), []).append(rating.rating)
    ratings = np.full((max(map(len, columns.values())), len(columns)), NAN)
    for place, column in enumerate(columns.values()):
        ratings[: len(column), place] = column
    assert krippendorff_alpha(ratings, level) == pytest.approx(independent_alpha(ratings, level), abs=1e-10)
    assert ratings.shape == (5, 400)
    counts = np.stack([(ratings == value).sum(axis=0) for value in range(1, 6)], axis=1)
    assert fleiss_kappa(counts) == pytest.approx(inter_rater.fleiss_kappa(counts))


@pytest.mark.parametrize("value", [0.1, 3.0])
@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_constant_data_is_undefined_not_a_crash(value: float, level) -> None:
    assert np.isnan(krippendorff_alpha(np.full((3, 7), value), level))
    assert np.isnan(krippendorff_alpha(np.full((3, 7), NAN), level))
    assert np.isnan(cohen_kappa(np.full(5, value), np.full(5, value)))
    assert np.isnan(fleiss_kappa(np.array([[3, 0], [3, 0]])))
    assert np.isnan(cohen_kappa(np.zeros(0), np.zeros(0)))


def test_kappas_against_statsmodels() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.integers(3, size=(2, 200))
    b[:120] = a[:120]
    table = np.zeros((3, 3))
    np.add.at(table, (a, b), 1)
    assert cohen_kappa(a, b) == pytest.approx(inter_rater.cohens_kappa(table, return_results=False))
    counts = generator.multinomial(5, [0.2, 0.5, 0.3], size=80)
    assert fleiss_kappa(counts) == pytest.approx(inter_rater.fleiss_kappa(counts))
    assert cohen_kappa(a, a) == 1 and fleiss_kappa(np.array([[3, 0], [0, 3]])) == 1


def test_fleiss_refuses_uneven_ratings() -> None:
    with pytest.raises(UserError, match="use krippendorff_alpha"):
        fleiss_kappa(np.array([[3, 0], [1, 1]]))


def test_an_unknown_level_lists_the_known() -> None:
    with pytest.raises(UserError, match="level 'ratio', allowed are nominal, ordinal, interval"):
        inspect.unwrap(krippendorff_alpha)(DOCUMENTED, "ratio")


def test_bootstrap_interval_is_that_of_the_normal_theory() -> None:
    values = np.random.default_rng(1).normal(2.0, 3.0, size=900)
    low, high = bootstrap_ci(values, resamples=4000)
    half = 1.96 * values.std() / 30
    assert low == pytest.approx(values.mean() - half, abs=0.03) and high == pytest.approx(
        values.mean() + half, abs=0.03
    )
    assert (low, high) == bootstrap_ci(values, resamples=4000) != bootstrap_ci(values, resamples=4000, seed=1)
    inner = bootstrap_ci(values, level=0.5)
    assert low < inner[0] < inner[1] < high


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low, high = bootstrap_ci(generator.exponential(size=60), seed=seed, level=0.9, resamples=400)
        hits += low <= 1 <= high
    assert 165 <= hits <= 194


@pytest.mark.parametrize(
    ("values", "level", "message"),
    [([], 0.95, "got no value"), ([1.0, NAN], 0.95, "1 values that are not finite"), ([1.0], 95.0, "level 95")],
)
def test_bootstrap_refuses_what_has_no_interval(values: list[float], level: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bootstrap_ci(np.array(values), level=level)
