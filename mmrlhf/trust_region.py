"""The maths of trust region policy optimization (Schulman et al. 2015, https://arxiv.org/abs/1502.05477) on flat vectors.

A step solves F x = g, with F the Fisher information of the policy and g the gradient of what is to rise; it is as long as a bound
on the KL between old and new policy allows, and shortened until the KL, measured, keeps to it. F itself is never written down.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.averaging import fill

Product = Callable[[Tensor], Tensor]
"""A vector -> a matrix times it."""


class Backtracked(NamedTuple):
    """The share of the full step that was taken, the surrogate and the mean KL (nats) there, and how often it was halved."""

    share: float
    surrogate: float
    kl: float
    halvings: int


def conjugate_gradient(
    product: Product, target: Float[Tensor, " n"], iterations: int = 10, tolerance: float = 1e-10
) -> Float[Tensor, " n"]:
    """x with A x ≈ `target`, for a positive definite A that is known by `product` alone (Hestenes and Stiefel 1952).

    It starts at 0, and ends early where |target − A x|² ≤ `tolerance` · |target|², or where rounding leaves A no curvature to go
    along.
    """
    solution, residual = torch.zeros_like(target), target.clone()
    direction, left = residual.clone(), float(residual @ residual)
    enough = tolerance * left
    for _ in range(iterations):
        if left <= enough:
            break
        curved = product(direction)
        curvature = float(direction @ curved)
        if not curvature > 0:
            break
        length = left / curvature
        solution = solution + length * direction
        residual = residual - length * curved
        before, left = left, float(residual @ residual)
        direction = residual + left / before * direction
    return solution


def slope_along(
    divergence: Float[Tensor, ""], weights: Sequence[Tensor], vector: Float[Tensor, " n"]
) -> Float[Tensor, ""]:
    """(∇ divergence) · `vector`, differentiable: its gradient is the divergence's Hessian times the vector (Pearlmutter 1994).

    `vector` is as long as the weights together, in their order. Where `divergence` is the mean KL(π'‖π_θ) at θ of a π' equal to
    π_θ that is held fast, this Hessian is the Fisher information.
    """
    gradients = torch.autograd.grad(divergence, weights, create_graph=True, allow_unused=True)
    pairs = zip(gradients, pieces(vector, weights), strict=True)
    return torch.stack([(gradient * piece).sum() for gradient, piece in pairs if gradient is not None]).sum()


def fisher_product(
    divergence: Float[Tensor, ""], weights: Sequence[Tensor], vector: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """The Fisher information times a vector, of a divergence as `slope_along` takes it."""
    slope = slope_along(divergence, weights, vector)
    return flat(weights, torch.autograd.grad(slope, weights, allow_unused=True))


def natural_step(
    gradient: Float[Tensor, " n"], fisher: Product, max_kl: float, *, iterations: int = 10, damping: float = 0.1
) -> Float[Tensor, " n"]:
    """x √(2 δ / xᵀFx), with (F + `damping`) x = `gradient` (Schulman et al. 2015, appendix C): the step up the gradient that is
    steepest for its KL, which is δ = `max_kl` up to third order.

    0 where the gradient is, or where the policy does not change along x.
    """
    direction = conjugate_gradient(lambda vector: fisher(vector) + damping * vector, gradient, iterations)
    curvature = float(direction @ fisher(direction)) if direction.any() else 0.0
    if not curvature > 0:
        return torch.zeros_like(gradient)
    return direction * math.sqrt(2 * max_kl / curvature)


def backtrack(
    measure: Callable[[float], tuple[float, float]], surrogate: float, max_kl: float, halvings: int = 10
) -> Backtracked | None:
    """The longest of the shares 1, ½, ¼, … of a step whose KL is at most `max_kl` and whose surrogate is above `surrogate`.

    `measure(share)` takes that share of the step and gives (surrogate, KL) there. None where no share of them will do: then the
    caller takes the step back.
    """
    for times in range(halvings + 1):
        share = 0.5**times
        reached, kl = measure(share)
        if kl <= max_kl and reached > surrogate:  # never where one of them is not a number
            return Backtracked(share, reached, kl, times)
    return None


def flat(weights: Sequence[Tensor], values: Sequence[Tensor | None]) -> Float[Tensor, " n"]:
    """One vector of values that are shaped like the weights; None stands for zeros."""
    return torch.cat([
        (torch.zeros_like(weight) if value is None else value).detach().flatten()
        for weight, value in zip(weights, values, strict=True)
    ])  # fmt: skip


def pieces(vector: Float[Tensor, " n"], weights: Sequence[Tensor]) -> list[Tensor]:
    """A flat vector as tensors shaped like the weights."""
    parts = vector.split([weight.numel() for weight in weights])
    return [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]


def write(weights: Sequence[Tensor], vector: Float[Tensor, " n"]) -> None:
    """Put a flat vector into the weights."""
    fill(weights, pieces(vector, weights))
