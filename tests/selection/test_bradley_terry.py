"""The head against scipy's optimiser, finite differences and integrals; its ensemble against the posterior it is drawn from."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import expit

from mmrlhf.errors import UserError
from selection.bradley_terry import (
    draw_margins,
    fit_at,
    fit_features,
    fit_head,
    hessian_of,
    loss_of,
    principal,
    ridge_of,
)
from selection.d_optimal import Design


def data(count: int = 60, columns: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    truth, z = np.array([2.0, -1.0, 0.5])[:columns], random.normal(size=(count, columns))
    labels = (random.random(count) < expit(z @ truth)).astype(float)
    labels[:5] = 0.5
    return z, labels, truth


def test_the_weights_are_those_of_the_smallest_loss() -> None:
    z, labels, _ = data()
    head = fit_at(z, labels, 0.7)
    other = minimize(lambda w: loss_of(z, labels, 0.7, w), np.zeros(3), tol=1e-12)
    np.testing.assert_allclose(head.weights, other.x, atol=1e-5)


def test_the_covariance_is_the_inverse_of_the_curvature() -> None:
    z, labels, _ = data()
    head = fit_at(z, labels, 0.7)
    step = 1e-4 * np.eye(3)
    curvature = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            corners = [
                a * b * loss_of(z, labels, 0.7, head.weights + a * step[i] + b * step[j])
                for a in (1, -1)
                for b in (1, -1)
            ]
            curvature[i, j] = sum(corners) / (4 * 1e-8)
    np.testing.assert_allclose(np.linalg.inv(head.covariance), curvature, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(hessian_of(z, 0.7, head.weights), curvature, rtol=1e-4, atol=1e-4)


def test_the_evidence_is_the_integral_over_the_prior() -> None:
    """In one dimension, where it can be integrated; Laplace's approximation is good to a percent with 60 answers."""
    z, labels, _ = data(columns=1)
    for precision in (0.1, 1.0, 30.0):
        head = fit_at(z, labels, precision)

        def posterior(w: float, precision: float = precision) -> float:
            return np.exp(-loss_of(z, labels, precision, np.array([w])))

        integral, _ = quad(posterior, -20, 20, points=[float(head.weights[0])], epsabs=0, epsrel=1e-9, limit=200)
        assert head.evidence == pytest.approx(np.log(np.sqrt(precision / (2 * np.pi)) * integral), abs=0.02)


def test_the_answers_choose_the_prior_and_are_learnt() -> None:
    z, labels, truth = data(2000)
    head = fit_head(z, labels)
    np.testing.assert_allclose(head.weights, truth, atol=0.3)
    nothing = fit_head(z, np.random.default_rng(1).integers(0, 2, len(z)).astype(float))
    assert nothing.precision > head.precision and np.abs(nothing.weights).max() < 0.2


def test_the_ensemble_has_the_mean_and_the_spread_of_the_posterior() -> None:
    z, labels, _ = data()
    head = fit_head(z, labels)
    margins = draw_margins(head, z, 20_000, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(margins.mean(axis=0), z @ head.weights, atol=0.05)
    np.testing.assert_allclose(margins.var(axis=0), np.einsum("pd,de,pe->p", z, head.covariance, z), rtol=0.06)


def test_principal_components_keep_distances_up_to_one_scale() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32) * [5, 4, 3, 2, 1]
    kept = principal(rows, 5)
    ratio = np.linalg.norm(kept[:, None] - kept[None], axis=2) / (
        np.linalg.norm(rows[:, None] - rows[None], axis=2) + 1e-30
    )
    off = ~np.eye(40, dtype=bool)
    np.testing.assert_allclose(ratio[off], ratio[0, 1], rtol=1e-6)
    assert (kept**2).sum(axis=1).mean() == pytest.approx(1.0)
    assert np.abs(np.cov(kept.T) - np.diag(np.diag(np.cov(kept.T)))).max() < 1e-9
    assert principal(rows, 2).shape == (40, 2)
    assert np.array_equal(principal(np.ones((3, 2), dtype=np.float32)), np.zeros((3, 2)))


@pytest.mark.parametrize("labels", [np.array([]), np.array([1.5]), np.array([np.nan])])
def test_what_are_no_answers_is_refused(labels: np.ndarray) -> None:
    with pytest.raises(UserError, match="one answer or more, with finite features and labels from 0 to 1"):
        fit_head(np.ones((len(labels), 2)), labels)


def test_whitening_makes_the_components_alike_and_leaves_rounding_small() -> None:
    rows = (np.random.default_rng(3).normal(size=(40, 4)) * [8, 4, 2, 1]) @ np.random.default_rng(4).normal(size=(4, 6))
    left, sizes, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    for whitening in (0.0, 0.5, 1.0):
        found = principal(rows, 6, whitening=whitening)
        expected = left[:, :4] * sizes[:4] ** (1 - whitening)
        expected /= np.sqrt((expected**2).sum(axis=1).mean())
        np.testing.assert_allclose(np.abs(found[:, :4]), np.abs(expected), atol=1e-6)
        assert np.abs(found[:, 4:]).max() < 1e-6
    assert not principal(np.ones((3, 2)), whitening=1.0).any()


def test_the_ridge_of_a_head_is_its_own_prior() -> None:
    """`v_optimal`'s design, whose rows are scaled, has the head's own leverage: zᵀ(Σ p(1-p)zzᵀ + precision·1)⁻¹z·p(1-p)."""
    z = np.random.default_rng(5).normal(size=(30, 4))
    labels = (z[:12] @ [1.0, 2.0, -1.0, 0.5] > 0).astype(float)
    features, head = fit_features([z, 0.1 * z], np.arange(12), labels)
    assert features is z or head.evidence >= fit_head(z[:12], labels).evidence
    chance = 1 / (1 + np.exp(-(features @ head.weights)))
    weight = chance * (1 - chance)
    design = Design(features, torch.from_numpy(features @ head.weights), ridge_of(head, features))
    for row in range(12):
        design.ask(row)
    precision = (features[:12].T * weight[:12]) @ features[:12] + head.precision * np.eye(4)
    expected = weight * np.einsum("ij,jk,ik->i", features, np.linalg.inv(precision), features)
    np.testing.assert_allclose(design.leverage, expected, rtol=1e-4)
