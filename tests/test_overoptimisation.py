"""Fits against curves that are known, best of n against every subset."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from mmrlhf.overoptimisation import (
    Form,
    best_of_n,
    best_of_n_curve,
    best_of_n_kl,
    fit_overoptimisation,
    peak_of,
    predicted,
)

KL = np.array([0.0, 0.3, 1.0, 4.0, 9.0, 25.0, 60.0])


@pytest.mark.parametrize("start", [0.0, None])
@pytest.mark.parametrize("form", ["rl", "best-of-n"])
def test_a_curve_of_the_form_is_found_again(form: Form, start: float | None) -> None:
    d = np.sqrt(KL)
    alpha, beta, origin = 0.9, 0.2, 0.0 if start is not None else 0.37
    with np.errstate(divide="ignore", invalid="ignore"):
        gold = origin + np.where(d > 0, d * (alpha - beta * (np.log(d) if form == "rl" else d)), 0.0)
    fit = fit_overoptimisation(KL, gold, form, start=start)
    assert (fit.alpha, fit.beta, fit.start, fit.r2) == pytest.approx((alpha, beta, origin, 1.0), abs=1e-9)
    np.testing.assert_allclose(predicted(fit, KL), gold, atol=1e-9)
    grid = np.linspace(1e-3, 100, 400_001)
    highest = grid[predicted(fit, grid**2).argmax()]
    assert fit.peak == pytest.approx(highest, abs=1e-3)


def test_the_fit_is_least_squares() -> None:
    generator = np.random.default_rng(0)
    gold = 0.5 + np.sqrt(KL) - 0.1 * KL + 0.3 * generator.normal(size=len(KL))
    fit = fit_overoptimisation(KL, gold, "best-of-n")
    columns = np.stack([np.ones_like(KL), np.sqrt(KL), KL], axis=1)
    start, alpha, beta = np.linalg.solve(columns.T @ columns, columns.T @ gold)
    assert (fit.start, fit.alpha, fit.beta) == pytest.approx((start, alpha, -beta))
    assert fit.r2 == pytest.approx(np.corrcoef(columns @ [start, alpha, beta], gold)[0, 1] ** 2)


def test_curves_without_a_peak() -> None:
    assert peak_of(1.0, 0.0, "rl") is None
    assert peak_of(1.0, -0.1, "best-of-n") is None
    assert peak_of(-1.0, 0.1, "best-of-n") is None
    assert peak_of(1.0, 1e-9, "rl") is None  # beyond every number
    assert fit_overoptimisation(KL, np.ones_like(KL), "rl").r2 is None


def test_bad_input_of_a_fit() -> None:
    with pytest.raises(UserError, match="got 2 different KL, allowed are 3 or more"):
        fit_overoptimisation(np.array([0.0, 1.0, 1.0]), np.zeros(3), "rl")
    with pytest.raises(UserError, match="negative or not a number"):
        fit_overoptimisation(np.array([0.0, 1.0, -1.0]), np.zeros(3), "rl")
    with pytest.raises(UserError, match="negative or not a number"):
        fit_overoptimisation(KL, np.full(len(KL), math.nan), "rl")


def test_kl_of_best_of_n() -> None:
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)
    # the best of n uniform samples has density n u^(n-1), whose KL to the uniform is ∫ n u^(n-1) log(n u^(n-1)) du
    u = (np.arange(200_000) + 0.5) / 200_000
    density = 16 * u**15
    assert best_of_n_kl(16) == pytest.approx(np.mean(density * np.log(density)), abs=1e-6)
    with pytest.raises(UserError, match="got n 0"):
        best_of_n_kl(0)


@given(st.integers(1, 7), st.data())
def test_best_of_n_is_the_mean_over_all_subsets(samples: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, samples))
    levels = st.lists(st.integers(0, 3), min_size=samples, max_size=samples)
    learned, gold = (np.array([data.draw(levels)], dtype=float) for _ in range(2))
    expected = []
    for subset in combinations(range(samples), n):
        scores = learned[0, list(subset)]
        best = [i for i in subset if learned[0, i] == scores.max()]
        # who comes first among equals is decided for all subsets alike: a random order, all orders equally likely
        expected.append((subset, best))
    total = 0.0
    ranks = np.unique(learned[0])
    for value in ranks:
        equals = [i for i in range(samples) if learned[0, i] == value]
        wins = sum(1 for _, best in expected if best[0] in equals)
        total += wins * gold[0, equals].mean()
    assert best_of_n(learned, gold, n)[0] == pytest.approx(total / math.comb(samples, n))


def test_best_of_n_is_unbiased() -> None:
    generator = np.random.default_rng(0)
    gold = generator.normal(size=(4000, 12))
    learned = gold + generator.normal(size=gold.shape)
    curve = best_of_n_curve(learned, gold, [1, 4])
    fresh = generator.normal(size=(100_000, 4))
    noisy = fresh + generator.normal(size=fresh.shape)
    truth = fresh[np.arange(len(fresh)), noisy.argmax(axis=1)].mean()
    assert curve[0].gold == pytest.approx(gold.mean()) and curve[0].learned == pytest.approx(learned.mean())
    assert curve[1].gold == pytest.approx(truth, abs=0.03)
    assert curve[1].learned > curve[1].gold  # the learned reward promises more than it keeps
    assert curve[1].gold_ci95[0] < curve[1].gold < curve[1].gold_ci95[1]
    assert curve[1].kl == best_of_n_kl(4)


def test_extremes_and_large_numbers() -> None:
    learned = np.random.default_rng(1).normal(size=(2, 3000))
    np.testing.assert_allclose(best_of_n(learned, learned, 3000), learned.max(axis=1))
    np.testing.assert_allclose(best_of_n(learned, learned, 1), learned.mean(axis=1))
    np.testing.assert_allclose(best_of_n(learned, np.ones_like(learned), 700), 1)
    with pytest.raises(UserError, match="got n 5, allowed is from 1 to 4"):
        best_of_n_curve(np.ones((1, 4)), np.ones((1, 4)), [5])
    with pytest.raises(UserError, match="not a finite number"):
        best_of_n_curve(np.full((1, 4), math.nan), np.ones((1, 4)), [1])
