"""A small Bradley–Terry head on what pairs differ in, P(first wins) = σ(w·z), and what it does not know about itself."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.special import expit

from mmrlhf.errors import UserError

PRECISIONS = np.geomspace(1e-1, 1e3, 9)  # of the prior of the weights, among which the answers choose
STEPS, TOLERANCE = 50, 1e-10


class Head(NamedTuple):
    """The most probable weights, their covariance by Laplace's approximation, the precision of their prior, log P(answers)."""

    weights: Float64[np.ndarray, " d"]
    covariance: Float64[np.ndarray, "d d"]
    precision: float
    evidence: float


def principal(embeddings: Float[np.ndarray, "n d"], columns: int = 64) -> Float64[np.ndarray, "n c"]:
    """The first principal components of the rows, at most `columns`, scaled together to a mean square of 1 a row."""
    centred = embeddings.astype(np.float64)
    centred -= centred.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    rows = centred @ vectors[:, ::-1][:, :columns]
    scale = np.sqrt((rows**2).sum(axis=1).mean())
    return rows / scale if scale > 0 else rows


def fit_head(differences: Float64[np.ndarray, "k d"], labels: Float[np.ndarray, " k"]) -> Head:
    """The head of the prior under which the answers are likeliest; `labels` are the weight of the first, 0.5 a tie.

    log P(answers) ≈ −loss + d/2·log precision − ½·log det Hessian, at the weights of the smallest loss (MacKay 1992).
    """
    if not len(differences) or not (np.isfinite(differences).all() and (labels >= 0).all() and (labels <= 1).all()):
        raise UserError("a head is fitted to one answer or more, with finite features and labels from 0 to 1")
    found = [fit_at(differences, labels.astype(np.float64), float(precision)) for precision in PRECISIONS]
    return max(found, key=lambda head: head.evidence)


def fit_at(z: Float64[np.ndarray, "k d"], labels: Float64[np.ndarray, " k"], precision: float) -> Head:
    """The head of one prior, by Newton's method; the loss is convex, so that halved steps always end."""
    weights = np.zeros(z.shape[1])
    now = loss_of(z, labels, precision, weights)
    for _ in range(STEPS):
        gradient = z.T @ (expit(z @ weights) - labels) + precision * weights
        step = np.linalg.solve(hessian_of(z, precision, weights), gradient)
        size = 1.0
        while (then := loss_of(z, labels, precision, weights - size * step)) > now and size > 1e-6:
            size /= 2
        if now - then <= TOLERANCE * max(1.0, abs(now)):
            break
        weights, now = weights - size * step, then
    hessian = hessian_of(z, precision, weights)
    evidence = len(weights) / 2 * np.log(precision) - now - np.linalg.slogdet(hessian)[1] / 2
    return Head(weights, np.linalg.inv(hessian), precision, float(evidence))


def loss_of(
    z: Float64[np.ndarray, "k d"],
    labels: Float64[np.ndarray, " k"],
    precision: float,
    weights: Float64[np.ndarray, " d"],
) -> float:
    """−log of likelihood × prior, without what does not depend on the weights."""
    margins = z @ weights
    return float(np.logaddexp(0, margins).sum() - labels @ margins + precision / 2 * weights @ weights)


def hessian_of(
    z: Float64[np.ndarray, "k d"], precision: float, weights: Float64[np.ndarray, " d"]
) -> Float64[np.ndarray, "d d"]:
    """Second derivatives of the loss."""
    chance = expit(z @ weights)
    return (z * (chance * (1 - chance))[:, None]).T @ z + precision * np.eye(len(weights))


def draw_margins(
    head: Head, differences: Float64[np.ndarray, "p d"], members: int, generator: torch.Generator
) -> Float64[np.ndarray, "m p"]:
    """Margins of every pair by heads drawn from what the answers leave possible: an ensemble without training one."""
    noise = torch.randn(members, len(head.weights), generator=generator, dtype=torch.double).numpy()
    return (head.weights + noise @ np.linalg.cholesky(head.covariance).T) @ differences.T
