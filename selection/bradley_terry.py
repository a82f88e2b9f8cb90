"""A small Bradley–Terry head on what pairs differ in, P(first wins) = σ(w·z), and what it does not know about itself."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from scipy.special import expit

from mmrlhf.errors import UserError

PRECISIONS = np.geomspace(1e-1, 1e3, 9)  # of the prior of the weights, among which the answers choose
STEPS, TOLERANCE = 50, 1e-10
ROUNDING = 1e-9  # of the largest variance: that of float32 embeddings
WHITENINGS = (0.0, 0.5, 1.0)  # of the features, among which the answers choose, too


class Head(NamedTuple):
    """The most probable weights, their covariance by Laplace's approximation, the precision of their prior, log P(answers)."""

    weights: Float64[np.ndarray, " d"]
    covariance: Float64[np.ndarray, "d d"]
    precision: float
    evidence: float


def principal(
    embeddings: Float[np.ndarray, "n d"], columns: int = 64, *, whitening: float = 0.0
) -> Float64[np.ndarray, "n c"]:
    """The first principal components of the rows, at most `columns`, scaled together to a mean square of 1 a row.

    Before that, each is scaled by its variance^(-whitening/2); what varies by rounding only stays as small as it is.
    """
    centred = embeddings.astype(np.float64)
    centred -= centred.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    values, vectors = values[::-1][:columns], vectors[:, ::-1][:, :columns]
    rows = centred @ vectors
    if whitening:
        top = values[0] or 1.0
        rows *= np.where(values > ROUNDING * top, np.maximum(values, ROUNDING * top) / top, 1.0) ** (-whitening / 2)
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


def fit_features(
    choices: Sequence[Float64[np.ndarray, "p d"]], asked: Int[np.ndarray, " k"], labels: Float[np.ndarray, " k"]
) -> tuple[Float64[np.ndarray, "p d"], Head]:
    """(the features, among `choices`, under which the answers to the rows `asked` are likeliest; their head)."""
    heads = [fit_head(z[asked], labels) for z in choices]
    best = int(np.argmax([head.evidence for head in heads]))
    return choices[best], heads[best]


def ridge_of(head: Head, differences: Float64[np.ndarray, "p d"]) -> float:
    """The `ridge` of `d_optimal` and `v_optimal` that is the head's own prior, with its margins of these pairs."""
    margins = differences @ head.weights
    weight = expit(margins) * expit(-margins)
    average = float((weight * (differences**2).sum(axis=1)).mean()) / differences.shape[1]
    return head.precision / (average or 1.0)


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
