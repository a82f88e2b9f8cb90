"""Off-policy estimates against a bandit whose answer is known, and their intervals by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from mmrlhf.off_policy import (
    bootstrap_ratio,
    clipped,
    doubly_robust,
    effective_sample_size,
    importance_sampling,
    self_normalised,
)

OLD, NEW = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.3, 0.6])
MEANS = np.array([0.2, 0.5, 0.9])
TRUTH = float(NEW @ MEANS)


def logged(generator: np.random.Generator, n: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(action, log-weight, reward 0 or 1) of `n` samples of the old policy."""
    actions = generator.choice(3, n, p=OLD)
    return actions, np.log(NEW / OLD)[actions], (generator.random(n) < MEANS[actions]).astype(float)


def test_by_hand() -> None:
    log_weights, rewards = np.log([2.0, 0.5, 1.0]), np.array([1.0, 2.0, 0.0])
    assert importance_sampling(log_weights, rewards).value == pytest.approx((2 + 1 + 0) / 3)
    assert self_normalised(log_weights, rewards).value == pytest.approx(3 / 3.5)
    assert clipped(log_weights, rewards, clip=1.0).value == pytest.approx((1 + 1 + 0) / 3)
    assert clipped(log_weights, rewards).value == pytest.approx((math.sqrt(3) + 1 + 0) / 3)
    robust = doubly_robust(log_weights, rewards, np.array([1.0, 1.0, 1.0]), np.array([0.5, 0.6, 0.7]))
    assert robust.value == pytest.approx((0.5 + 0.6 + 0.5 + 0.7 - 1) / 3)
    assert robust.effective_samples == pytest.approx(3.5**2 / (4 + 0.25 + 1))
    assert robust.mean_weight == pytest.approx(3.5 / 3)
    # mean ± 1.96 standard errors of the three values 2, 1, 0
    low, high = importance_sampling(log_weights, rewards).ci95
    assert (high - low) / 2 == pytest.approx(1.959964 * 1 / math.sqrt(3))


def test_the_exact_value_when_every_sample_occurs_as_often_as_it_should() -> None:
    actions = np.repeat(np.arange(3), [50, 30, 20])
    log_weights, rewards = np.log(NEW / OLD)[actions], MEANS[actions]
    for estimate in (importance_sampling(log_weights, rewards), self_normalised(log_weights, rewards)):
        assert estimate.value == pytest.approx(TRUTH)
        assert estimate.mean_weight == pytest.approx(1)
        assert estimate.warning == ""


def test_doubly_robust_is_unbiased_if_the_model_or_the_weights_are_right() -> None:
    generator = np.random.default_rng(0)
    wrong_model, wrong_weights = np.array([0.7, 0.1, 0.3]), np.log([0.3, 2.0, 1.0])
    found: dict[str, list[float]] = {"weights right": [], "model right": [], "both wrong": []}
    for _ in range(400):
        actions, log_weights, rewards = logged(generator)

        def estimate(log_weights: np.ndarray, model: np.ndarray, a: np.ndarray, r: np.ndarray) -> float:
            return doubly_robust(log_weights, r, model[a], np.full(len(a), NEW @ model)).value

        found["weights right"].append(estimate(log_weights, wrong_model, actions, rewards))
        found["model right"].append(estimate(wrong_weights[actions], MEANS, actions, rewards))
        found["both wrong"].append(estimate(wrong_weights[actions], wrong_model, actions, rewards))
    for name, values in found.items():
        error = np.std(values) / math.sqrt(len(values))
        assert (abs(np.mean(values) - TRUTH) < 4 * error) == (name != "both wrong"), name


def test_a_good_model_narrows_the_interval() -> None:
    actions, log_weights, rewards = logged(np.random.default_rng(1), 2000)
    plain = importance_sampling(log_weights, rewards).ci95
    robust = doubly_robust(log_weights, rewards, MEANS[actions], np.full(len(actions), TRUTH)).ci95
    assert robust[1] - robust[0] < 0.8 * (plain[1] - plain[0])


def test_intervals_hold_the_truth_about_95_times_in_100() -> None:
    generator = np.random.default_rng(2)
    trials = 300
    held = {"importance sampling": 0, "self-normalised": 0, "doubly robust": 0}
    for _ in range(trials):
        actions, log_weights, rewards = logged(generator)
        model = np.array([0.3, 0.3, 0.8])
        for name, estimate in (
            ("importance sampling", importance_sampling(log_weights, rewards)),
            ("self-normalised", self_normalised(log_weights, rewards)),
            ("doubly robust", doubly_robust(log_weights, rewards, model[actions], np.full(len(actions), NEW @ model))),
        ):
            held[name] += estimate.ci95[0] <= TRUTH <= estimate.ci95[1]
    for name, count in held.items():
        assert 0.90 < count / trials < 0.99, name


def test_samples_of_a_unit_are_resampled_together() -> None:
    """Ten copies of twenty samples hold the information of twenty."""
    _, log_weights, rewards = logged(np.random.default_rng(3), 20)
    units = [f"p{i}" for i in range(20)]
    for estimator in (importance_sampling, self_normalised, clipped):
        alone = estimator(log_weights, rewards)
        copied = estimator(np.tile(log_weights, 10), np.tile(rewards, 10), units=units * 10)
        blind = estimator(np.tile(log_weights, 10), np.tile(rewards, 10))
        width, copied_width, blind_width = (e.ci95[1] - e.ci95[0] for e in (alone, copied, blind))
        assert copied.value == pytest.approx(alone.value, abs=0.2)
        if estimator is not clipped:  # whose limit, √n, grows with the copies
            assert copied_width == pytest.approx(width, rel=0.15)
        assert copied_width > 2 * blind_width


@given(
    st.lists(st.tuples(st.floats(-50, 50), st.floats(-3, 3)), min_size=1, max_size=20),
    st.floats(-1000, 1000),
)
def test_self_normalised_stays_within_the_rewards_and_ignores_a_common_factor(
    rows: list[tuple[float, float]], shift: float
) -> None:
    log_weights, rewards = np.array(rows).T.copy()
    estimate = self_normalised(log_weights, rewards)
    assert min(rewards) - 1e-9 <= estimate.value <= max(rewards) + 1e-9
    shifted = self_normalised(log_weights + shift, rewards)
    assert shifted.value == pytest.approx(estimate.value, abs=1e-6)
    assert 1 - 1e-9 <= shifted.effective_samples <= len(rows) + 1e-9


def test_clipping_is_importance_sampling_once_the_limit_is_out_of_reach() -> None:
    _, log_weights, rewards = logged(np.random.default_rng(4))
    assert clipped(log_weights, rewards, clip=1e9) == importance_sampling(log_weights, rewards)
    assert clipped(log_weights, rewards, clip=1.0).value < importance_sampling(log_weights, rewards).value


def test_few_effective_samples_are_said() -> None:
    log_weights = np.zeros(100)
    log_weights[0] = 20.0
    estimate = self_normalised(log_weights, np.ones(100))
    assert estimate.effective_samples == pytest.approx(1, abs=1e-3)
    assert "effective sample size is 1.0 of 100" in estimate.warning


def test_weights_of_zero() -> None:
    log_weights = np.array([-math.inf, 0.0, 0.0])
    assert importance_sampling(log_weights, np.array([5.0, 1.0, 2.0])).value == pytest.approx(1)
    assert self_normalised(log_weights, np.array([5.0, 1.0, 2.0])).value == pytest.approx(1.5)
    assert effective_sample_size(np.full(3, -math.inf)) == 0
    assert bootstrap_ratio(np.array([0.0, 2.0]), np.array([0.0, 1.0]), 0) == (2, 2)
    with pytest.raises(UserError, match="all 3 log-weights are -inf"):
        self_normalised(np.full(3, -math.inf), np.ones(3))


def test_one_unit_has_no_interval() -> None:
    assert math.isnan(importance_sampling(np.zeros(2), np.ones(2), units=["p", "p"]).ci95[0])


@pytest.mark.parametrize(
    ("log_weights", "rewards", "message"),
    [
        (np.zeros(0), np.zeros(0), "got 0 log-weights and 0 rewards"),
        (np.zeros(2), np.zeros(3), "got 2 log-weights and 3 rewards"),
        (np.array([0.0, math.nan]), np.zeros(2), "log-weight 1 got nan"),
        (np.array([math.inf, 0.0]), np.zeros(2), "log-weight 0 got inf"),
        (np.zeros(2), np.array([0.0, math.nan]), "rewards 1 got nan"),
        (np.zeros(2, dtype=np.float32), np.zeros(2), "log-weights got float32, allowed is float64"),
        (np.array([800.0]), np.zeros(1), "a log-weight got 800, allowed is up to 700"),
    ],
)
def test_bad_input(log_weights: np.ndarray, rewards: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        importance_sampling(log_weights, rewards)


def test_more_bad_input() -> None:
    with pytest.raises(UserError, match="1 units"):
        importance_sampling(np.zeros(2), np.zeros(2), units=["p"])
    with pytest.raises(UserError, match="clip got -1"):
        clipped(np.zeros(2), np.zeros(2), clip=-1.0)
    with pytest.raises(UserError, match="predicted_new 0 got inf"):
        doubly_robust(np.zeros(1), np.zeros(1), np.zeros(1), np.array([math.inf]))
