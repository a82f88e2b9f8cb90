"""Stability index, Kolmogorov–Smirnov and mean shift against known cases and simulations of no change."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.drift import kolmogorov_smirnov, mean_shift, population_stability, stability_verdict
from mmrlhf.errors import UserError

SCORES = st.lists(st.floats(-5, 5), min_size=1, max_size=40).map(np.array)


def test_index_by_hand() -> None:
    before, after = np.arange(100.0), np.concatenate([np.arange(50.0), np.arange(50.0)])
    found = population_stability(before, after, bins=2)
    a, b = (np.array([100.5, 0.5]) / 101, np.array([50.5, 50.5]) / 101)
    assert found.edges == (49,)
    assert found.value == pytest.approx(((a - b) * np.log(a / b)).sum())
    assert found.expected == pytest.approx(0.02) and found.corrected == pytest.approx(found.value - 0.02)
    assert found.limit95 == pytest.approx(3.8415 * 0.02, rel=1e-4)
    assert (found.before, found.after) == (pytest.approx(tuple(b)), pytest.approx(tuple(a)))


def test_index_of_no_change_is_what_is_expected() -> None:
    generator = np.random.default_rng(0)
    found = [population_stability(*generator.normal(size=(2, 300))) for _ in range(600)]
    values = np.array([each.value for each in found])
    assert values.mean() == pytest.approx(found[0].expected, rel=0.08)
    assert np.mean(values > found[0].limit95) == pytest.approx(0.05, abs=0.03)


def test_index_of_a_known_shift() -> None:
    """A normal distribution that moves by s has an index of about s² (its divergence both ways), less what bins lose."""
    generator = np.random.default_rng(1)
    before, after = generator.normal(size=100_000), generator.normal(size=100_000) + 0.5
    assert population_stability(before, after, bins=100).corrected == pytest.approx(0.25, rel=0.05)
    assert 0.2 < population_stability(before, after).corrected < 0.25


@given(SCORES, SCORES)
def test_index_is_not_negative_and_knows_no_unit(before: np.ndarray, after: np.ndarray) -> None:
    before, after = before.round(2), after.round(2)
    found = population_stability(before, after)
    assert found.value >= -1e-12 and found.corrected >= 0
    assert sum(found.before) == pytest.approx(1) and sum(found.after) == pytest.approx(1)
    assert population_stability(before, before).value == 0
    assert len(found.before) == len(found.edges) + 1 <= 10
    assert population_stability(np.exp(before), np.exp(after)).value == found.value


def test_equal_scores_share_a_bin() -> None:
    assert population_stability(np.zeros(20), np.zeros(5)) == (0, 0, 0, 0, (), (1,), (1,))
    votes = np.array([0.0, 1.0]).repeat(50)
    assert len(population_stability(votes, votes).before) == 2
    assert stability_verdict(population_stability(votes, np.ones(100)).corrected) == "retrain"


def test_verdicts() -> None:
    assert [stability_verdict(value) for value in (0.0, 0.0999, 0.1, 0.25, 0.2501)] == [
        "stable", "stable", "look", "look", "retrain",
    ]  # fmt: skip


def test_kolmogorov_smirnov_by_hand() -> None:
    d, p = kolmogorov_smirnov(np.array([1.0, 2, 3, 4]), np.array([3.5, 4.5, 5.5, 6.5]))
    assert d == pytest.approx(0.75)
    assert p == pytest.approx(2 * 8 / math.comb(8, 4))  # 8 of the 70 orders reach 3/4 on one side, as many on the other
    assert kolmogorov_smirnov(np.arange(9.0), np.arange(9.0)) == (0, 1)


def test_mean_shift_resamples_prompts_and_pairs_them() -> None:
    generator = np.random.default_rng(2)
    prompts = [f"p{i}" for i in range(40) for _ in range(5)]
    easy = np.repeat(generator.normal(size=40) * 3, 5)
    before, after = easy + generator.normal(size=200), easy + 0.4 + generator.normal(size=200)
    paired = mean_shift(before, after, prompts, prompts)
    assert paired.value == pytest.approx(after.mean() - before.mean())
    assert paired.in_sd == pytest.approx(paired.value / before.std(ddof=1))
    differences = (after - before).reshape(40, 5).mean(axis=1)
    expected = 2 * 1.96 * differences.std(ddof=1) / math.sqrt(40)
    assert paired.ci95[1] - paired.ci95[0] == pytest.approx(expected, rel=0.1)
    apart = mean_shift(before, after, prompts, [f"other {name}" for name in prompts])
    means = [scores.reshape(40, 5).mean(axis=1) for scores in (before, after)]
    expected = 2 * 1.96 * math.sqrt(sum(mean.var(ddof=1) for mean in means) / 40)
    assert apart.ci95[1] - apart.ci95[0] == pytest.approx(expected, rel=0.1)


def test_mean_shift_of_one_score() -> None:
    assert mean_shift(np.array([1.0]), np.array([3.0]), ["a"], ["b"]) == (2, (2, 2), None)


@pytest.mark.parametrize("bad", [np.zeros(0), np.array([1.0, math.nan])])
def test_bad_input(bad: np.ndarray) -> None:
    for function in (population_stability, kolmogorov_smirnov):
        with pytest.raises(UserError, match="the sample after got"):
            function(np.ones(3), bad)
    with pytest.raises(UserError, match="the sample before got"):
        mean_shift(bad, np.ones(1), [""] * len(bad), ["p"])
    with pytest.raises(UserError, match="got 1 bins"):
        population_stability(np.ones(3), np.ones(3), bins=1)
