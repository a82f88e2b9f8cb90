"""The natural gradient step against linear algebra, a Fisher matrix written out, and the KL that it promises."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mmrlhf.trust_region import (
    Product,
    backtrack,
    conjugate_gradient,
    fisher_product,
    flat,
    natural_step,
    pieces,
    slope_along,
    write,
)

STATES, ACTIONS, WIDTH = 7, 4, 3


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive_definite(size: int, seed: int) -> Float[Tensor, "n n"]:
    root = noise(size, size, seed=seed)
    return root @ root.T + 0.5 * torch.eye(size, dtype=torch.float64)


class Softmax:
    """π(·|s) = softmax(W s + b) on a few states."""

    def __init__(self) -> None:
        self.states = noise(STATES, WIDTH, seed=1)
        self.weights = [noise(ACTIONS, WIDTH, seed=2).requires_grad_(), noise(ACTIONS, seed=3).requires_grad_()]

    def log_probs(self) -> Float[Tensor, "s a"]:
        return F.log_softmax(self.states @ self.weights[0].T + self.weights[1], dim=-1)

    def kl_from(self, before: Float[Tensor, "s a"]) -> Float[Tensor, ""]:
        return (before.exp() * (before - self.log_probs())).sum(-1).mean()

    def fisher(self) -> Product:
        return lambda vector: fisher_product(self.kl_from(self.log_probs().detach()), self.weights, vector)

    def gradient(self, gains: Float[Tensor, "s a"]) -> Float[Tensor, " n"]:
        """Of the mean over states of Σ_a π(a|s) gain(s, a)."""
        reached = (self.log_probs().exp() * gains).sum(-1).mean()
        return flat(self.weights, torch.autograd.grad(reached, self.weights))


def fisher_written_out(policy: Softmax) -> Float[Tensor, "n n"]:
    """The mean over states of Σ_a π(a|s) ∇log π(a|s) ∇log π(a|s)ᵀ, entry by entry."""
    log_probs = policy.log_probs()
    total = torch.zeros(ACTIONS * (WIDTH + 1), ACTIONS * (WIDTH + 1), dtype=torch.float64)
    for state in range(STATES):
        for action in range(ACTIONS):
            score = torch.autograd.grad(log_probs[state, action], policy.weights, retain_graph=True)
            own = flat(policy.weights, score)
            total += float(log_probs[state, action].detach().exp()) * torch.outer(own, own) / STATES
    return total


@settings(deadline=None)
@given(size=st.integers(1, 8), seed=st.integers(0, 1000))
def test_conjugate_gradient_solves(size: int, seed: int) -> None:
    """In as many steps as there are dimensions, it is exact."""
    matrix, target = positive_definite(size, seed), noise(size, seed=seed + 1)
    found = conjugate_gradient(lambda vector: matrix @ vector, target, iterations=2 * size, tolerance=1e-24)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, target), rtol=1e-6, atol=1e-8)


def test_conjugate_gradient_ends_early() -> None:
    calls: list[Tensor] = []

    def product(vector: Tensor) -> Tensor:
        calls.append(vector)
        return 2 * vector

    assert torch.equal(conjugate_gradient(product, torch.tensor([2.0, 4.0])), torch.tensor([1.0, 2.0]))
    assert len(calls) == 1
    assert torch.equal(conjugate_gradient(product, torch.zeros(3)), torch.zeros(3)) and len(calls) == 1
    few = conjugate_gradient(lambda vector: torch.tensor([1.0, 9.0]) * vector, torch.ones(2), iterations=1)
    assert torch.allclose(few, torch.full((2,), 0.2))  # the best point along the gradient: 2 / (1 + 9)
    matrix, target = positive_definite(6, 0), noise(6)
    rough = conjugate_gradient(lambda vector: matrix @ vector, target, 50, tolerance=1e-2)
    assert 0 < float((target - matrix @ rough).square().sum() / target.square().sum()) <= 1e-2


def test_a_direction_without_curvature_ends_the_search() -> None:
    assert torch.equal(conjugate_gradient(torch.zeros_like, torch.ones(2)), torch.zeros(2))
    half = conjugate_gradient(lambda vector: torch.tensor([1.0, -1.0]) * vector, torch.tensor([3.0, 1.0]))
    assert half.isfinite().all()


def test_the_fisher_product_is_that_of_the_matrix() -> None:
    policy, vector = Softmax(), noise(ACTIONS * (WIDTH + 1), seed=4)
    expected = fisher_written_out(policy) @ vector
    torch.testing.assert_close(policy.fisher()(vector), expected)
    slope = slope_along(policy.kl_from(policy.log_probs().detach()), policy.weights, vector)
    assert float(slope.detach()) == pytest.approx(0, abs=1e-12)  # the KL is lowest where the policy is


def test_a_weight_that_changes_nothing_has_no_curvature() -> None:
    policy, idle = Softmax(), torch.ones(2, dtype=torch.float64, requires_grad=True)
    weights = [*policy.weights, idle]
    found = fisher_product(policy.kl_from(policy.log_probs().detach()), weights, noise(ACTIONS * (WIDTH + 1) + 2))
    assert (found[-2:] == 0).all() and (found[:-2] != 0).any()


def test_the_step_solves_the_damped_system_and_is_as_long_as_it_may() -> None:
    policy, matrix = Softmax(), fisher_written_out(Softmax())
    gradient = policy.gradient(noise(STATES, ACTIONS, seed=5))
    step = natural_step(gradient, policy.fisher(), 0.01, iterations=40, damping=0.1)
    wanted = torch.linalg.solve(matrix + 0.1 * torch.eye(len(matrix), dtype=torch.float64), gradient)
    assert float(F.cosine_similarity(step, wanted, dim=0)) == pytest.approx(1)
    assert float(0.5 * step @ matrix @ step) == pytest.approx(0.01)
    assert float(step @ gradient) > 0


def test_its_kl_is_the_bound_up_to_third_order() -> None:
    """KL = δ + O(δ^1.5): what is off, over δ, shrinks like √δ."""
    off = []
    for bound in (1e-2, 1e-4, 1e-6):
        policy = Softmax()
        before = policy.log_probs().detach()
        step = natural_step(policy.gradient(noise(STATES, ACTIONS, seed=5)), policy.fisher(), bound, iterations=40)
        write(policy.weights, flat(policy.weights, policy.weights) + step)
        off.append(abs(float(policy.kl_from(before).detach()) / bound - 1))
    assert off[0] < 0.2
    for larger, smaller in zip(off, off[1:], strict=False):
        assert smaller == pytest.approx(larger / 10, rel=0.2)


def test_no_gradient_and_no_curvature_are_no_step() -> None:
    assert torch.equal(natural_step(torch.zeros(3), lambda vector: vector, 0.01), torch.zeros(3))
    for damping in (0.0, 0.1):
        assert torch.equal(natural_step(torch.ones(3), torch.zeros_like, 0.01, damping=damping), torch.zeros(3))
    assert torch.equal(natural_step(torch.full((2,), math.nan), lambda vector: vector, 0.01), torch.zeros(2))


def test_backtracking_by_hand() -> None:
    tried: list[float] = []

    def measure(share: float) -> tuple[float, float]:
        tried.append(share)
        return share * (0.4 - share), share**2  # too far is worse

    found = backtrack(measure, 0.0, 0.1)
    assert found == (0.25, pytest.approx(0.0375), 0.0625, 2) and tried == [1, 0.5, 0.25]
    assert backtrack(lambda share: (1.0, share), 0.0, 1.0) == (1, 1, 1, 0)
    assert backtrack(lambda share: (0.0, 0.0), 0.0, 1.0) is None  # no better
    assert backtrack(lambda share: (1.0, 2.0), 0.0, 1.0) is None  # too far
    assert backtrack(lambda share: (math.nan, 0.0), 0.0, 1.0) is None
    assert backtrack(lambda share: (1.0, math.nan), 0.0, 1.0) is None
    assert backtrack(measure, 0.0, 0.1, halvings=1) is None
    assert backtrack(measure, 0.0, 0.1, halvings=2) is not None


@settings(deadline=None)
@given(bound=st.floats(1e-6, 1e3), curvature=st.floats(1e-3, 1e3))
def test_what_backtracking_takes_keeps_to_the_bound(bound: float, curvature: float) -> None:
    found = backtrack(lambda share: (share, curvature * share**2), 0.0, bound, halvings=40)
    assert found is not None and found.kl <= bound and found.surrogate > 0
    assert found.halvings == 0 or curvature * (2 * found.share) ** 2 > bound


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_pieces_undo_flat(sizes: list[int]) -> None:
    weights = [noise(size, 2, seed=i) for i, size in enumerate(sizes)]
    vector = flat(weights, weights)
    assert all(torch.equal(own, weight) for own, weight in zip(pieces(vector, weights), weights, strict=True))
    others = [torch.zeros_like(weight) for weight in weights]
    write(others, vector)
    assert all(torch.equal(own, weight) for own, weight in zip(others, weights, strict=True))
    assert torch.equal(flat(weights, [None] * len(weights)), torch.zeros_like(vector))
