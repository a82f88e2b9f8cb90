"""Implicit Q-learning's losses by hand, expectiles against a search, and its values against the optimal ones of a small task."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from mmrlhf.implicit_q import (
    approach,
    bellman_targets,
    conservative_loss,
    expectile_loss,
    implicit_q_loss,
    perturbed,
)

GAMMA = 0.9
# a small task: in each of three states two actions, after which comes the next state, or (3) the end
NEXT = torch.tensor([[1, 2], [3, 2], [3, 3]])
REWARD = torch.tensor([[0.0, 1.0], [4.0, 0.0], [1.0, 2.0]])


def expectile_of(values: Float[Tensor, " n"], expectile: float) -> float:
    """By bisection of τ Σ max(x − m, 0) = (1 − τ) Σ max(m − x, 0)."""
    low, high = float(values.min()), float(values.max())
    for _ in range(100):
        middle = (low + high) / 2
        over = expectile * float((values - middle).clamp(min=0).sum())
        under = (1 - expectile) * float((middle - values).clamp(min=0).sum())
        low, high = (middle, high) if over > under else (low, middle)
    return low


def paths() -> list[list[tuple[int, int]]]:
    """Every way through the task from the first state, as (state, action) pairs."""
    found: list[list[tuple[int, int]]] = []

    def walk(state: int, so_far: list[tuple[int, int]]) -> None:
        if state == 3:
            found.append(so_far)
            return
        for action in (0, 1):
            walk(int(NEXT[state, action]), [*so_far, (state, action)])

    walk(0, [])
    return found


def best_values() -> Float[Tensor, " s"]:
    """Value iteration."""
    values = torch.zeros(4)
    for _ in range(10):
        values[:3] = (REWARD + GAMMA * values[NEXT]).max(dim=1).values
    return values[:3]


def learned_values(expectile: float) -> tuple[Float[Tensor, " s"], Float[Tensor, "s a"]]:
    """V and Q as tables, learned from every way through the task with the loss that trains models."""
    ways = paths()
    width = max(map(len, ways))
    states, actions = torch.zeros(2, len(ways), width, dtype=torch.long)
    mask = torch.zeros(len(ways), width, dtype=torch.bool)
    for i, way in enumerate(ways):
        mask[i, : len(way)] = True
        states[i, : len(way)], actions[i, : len(way)] = torch.tensor(way).T
    rewards = REWARD[states, actions] * mask
    v, q = torch.zeros(3, requires_grad=True), torch.zeros(2, 3, 2, requires_grad=True)
    target = torch.zeros(2, 3, 2)
    optimizer = torch.optim.Adam([v, q], lr=0.1)
    for number in range(900):
        if number % 300 == 0:
            optimizer.param_groups[0]["lr"] = (0.1, 0.02, 0.004)[number // 300]
        loss, _ = implicit_q_loss(
            q[:, states, actions], q.logsumexp(-1)[:, states], target.min(0).values[states, actions], v[states], rewards,
            mask, expectile=expectile, discount=GAMMA, conservative_weight=0.0,
        )  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        approach([target], [q], 0.1)
    return v.detach(), q.detach().mean(0)


def test_its_values_are_the_optimal_ones_as_the_expectile_nears_one() -> None:
    best = best_values()
    errors, chosen = [], []
    for expectile in (0.5, 0.9, 0.999):
        values, q = learned_values(expectile)
        chosen.append(q.argmax(dim=1).tolist())
        errors.append(float((values - best).abs().max()))
        assert torch.allclose(q, REWARD + GAMMA * torch.cat([values, torch.zeros(1)])[NEXT], atol=0.05)
    assert errors[0] > 0.5 > errors[1] > errors[2] and errors[2] < 0.05
    # what most of the data does after the first action hides that it is the better one
    assert chosen == [[1, 0, 1], [0, 0, 1], [0, 0, 1]]


def test_at_a_half_they_are_those_of_the_data() -> None:
    """The mean over the ways through the task that the data has, not over those of the best."""
    ways, expected = paths(), torch.zeros(4)
    for state in (2, 1, 0):
        gains = [
            float(REWARD[s, a] + GAMMA * expected[NEXT[s, a]]) for way in ways for s, a in way if s == state
        ]  # fmt: skip
        expected[state] = sum(gains) / len(gains)
    assert torch.allclose(learned_values(0.5)[0], expected[:3], atol=0.05)


@settings(deadline=None)
@given(
    values=st.lists(st.floats(-10, 10), min_size=1, max_size=8),
    expectile=st.floats(0.05, 0.95),
)
def test_the_loss_is_least_at_the_expectile(values: list[float], expectile: float) -> None:
    data = torch.tensor(values, dtype=torch.float64)
    middle = torch.tensor(expectile_of(data, expectile), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(expectile_loss(data - middle, expectile).mean(), middle)
    assert float(slope) == pytest.approx(0, abs=1e-9)


def test_the_expectile_loss_by_hand() -> None:
    errors = torch.tensor([2.0, -2.0, 0.0])
    assert torch.allclose(expectile_loss(errors, 0.7), torch.tensor([2.8, 1.2, 0.0]))
    assert torch.allclose(expectile_loss(errors, 0.5), errors.square() / 2)


def test_targets_by_hand() -> None:
    rewards, values = (
        torch.tensor([[1.0, 2.0, 3.0], [1.0, 5.0, 0.0]]),
        torch.tensor([[10.0, 20.0, 30.0], [1.0, 2.0, 0.0]]),
    )
    expected = torch.tensor([[1 + 0.5 * 20, 2 + 0.5 * 30, 3], [1 + 0.5 * 2, 5, 0]])
    torch.testing.assert_close(bellman_targets(rewards, values, 0.5), expected)


def test_the_loss_by_hand() -> None:
    """One answer of two tokens and one of one; what is padded holds nonsense."""
    mask = torch.tensor([[True, True], [True, False]])
    q = torch.tensor([[[1.0, 2.0], [0.0, 99.0]], [[2.0, 2.0], [1.0, 99.0]]])
    log_sum_exp = q + torch.tensor([[[1.0, 1.0], [2.0, 99.0]], [[0.5, 0.5], [0.5, 99.0]]])
    target = torch.tensor([[2.0, 0.0], [1.0, 99.0]])
    values, rewards = torch.tensor([[1.0, 1.0], [2.0, 99.0]]), torch.tensor([[0.0, 3.0], [1.0, 99.0]])
    loss, figures = implicit_q_loss(
        q, log_sum_exp, target, values, rewards, mask, expectile=0.8, discount=0.5, conservative_weight=0.1
    )
    value_part = (0.8 * 1 + 0.2 * 1 + 0.2 * 1) / 3
    q_part = ((1 - 0.5) ** 2 + (2 - 3) ** 2 + (0 - 1) ** 2) / 3 + ((2 - 0.5) ** 2 + (2 - 3) ** 2 + 0) / 3
    conservative = 4 / 3 + 1.5 / 3
    assert float(loss) == pytest.approx(value_part + q_part + 0.1 * conservative)
    assert figures == pytest.approx(
        {"value_loss": value_part, "q_loss": q_part, "conservative_loss": conservative, "value": 4 / 3, "q": 8 / 6}
    )


def test_where_gradients_go() -> None:
    """V learns from the expectile alone, Q not from it, and what V is held to learns from nothing."""
    mask = torch.ones(1, 2, dtype=torch.bool)
    q, values, target = (
        torch.zeros(2, 1, 2, requires_grad=True),
        torch.zeros(1, 2, requires_grad=True),
        torch.ones(1, 2),
    )
    target.requires_grad_()
    loss, _ = implicit_q_loss(q, q, target, values, torch.ones(1, 2), mask, expectile=0.7, conservative_weight=0.0)
    grad_q, grad_values, grad_target = torch.autograd.grad(loss, [q, values, target], allow_unused=True)
    assert grad_target is None
    torch.testing.assert_close(grad_values, torch.full((1, 2), -2 * 0.7 / 2))
    torch.testing.assert_close(grad_q, torch.full((2, 1, 2), -1.0))


def test_the_conservative_term_is_a_cross_entropy() -> None:
    table = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    taken = torch.tensor([0, 3, 6, 1, 1])
    found = conservative_loss(table.gather(1, taken.unsqueeze(1)).squeeze(1), table.logsumexp(1))
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(table, taken, reduction="none"))


def test_decoding_weighs_the_policy_by_the_exponentiated_advantage() -> None:
    logits, q = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0))
    values = torch.tensor([1.0, -1.0])
    found = perturbed(logits, q, values, 2.0).softmax(-1)
    weighed = logits.softmax(-1) * (2.0 * (q - values.unsqueeze(1))).exp()
    torch.testing.assert_close(found, weighed / weighed.sum(-1, keepdim=True))
    assert torch.equal(perturbed(logits, q, values, 0.0), logits)


def test_a_target_approaches_its_source() -> None:
    target, source = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0], requires_grad=True)
    approach([target], [source], 0.25)
    assert torch.equal(target, torch.tensor([1.5, 2.0]))
