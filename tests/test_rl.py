"""Each formula on a case worked out on paper, and against an independent computation."""

import math
import statistics as python_statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from mmrlhf.rl import (
    AdaptiveKL,
    PromptStatistics,
    clipped_surrogate,
    gae,
    group_advantages,
    kl_k1,
    kl_k2,
    kl_k3,
    leave_one_out_advantages,
    whiten,
)

numbers = st.floats(-3, 3, allow_nan=False, width=32)


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_clipped_surrogate_by_hand() -> None:
    ratios = rows([1.0, 1.5, 0.5, 1.5, 0.5])
    advantages = rows([2.0, 2.0, 2.0, -2.0, -2.0])
    loss, metrics = clipped_surrogate(ratios.log(), torch.zeros_like(ratios), advantages, 0.2)
    # min(ρA, clip(ρ)A) is 2, 2.4, 1, -3, -1.6
    assert loss.item() == pytest.approx(-(2 + 2.4 + 1 - 3 - 1.6) / 5)
    assert metrics["clip_fraction"] == pytest.approx(0.8)
    assert metrics["ratio_mean"] == pytest.approx(1.0)
    assert (metrics["ratio_min"], metrics["ratio_max"]) == pytest.approx((0.5, 1.5))
    assert metrics["approx_kl"] == pytest.approx(sum(r - 1 - math.log(r) for r in [1.5, 0.5, 1.5, 0.5]) / 5)


def test_clipped_surrogate_has_no_gradient_where_a_ratio_went_far_enough() -> None:
    log_probs = rows([0.5, 0.5, -0.5, -0.5, 0.05]).requires_grad_()
    advantages = rows([1.0, -1.0, 1.0, -1.0, 1.0])
    clipped_surrogate(log_probs, torch.zeros(1, 5, dtype=torch.float64), advantages, 0.2)[0].backward()
    assert log_probs.grad is not None
    assert (log_probs.grad != 0).tolist() == [[False, True, True, False, True]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(numbers, numbers, numbers, st.booleans()), min_size=1, max_size=8), st.floats(0.01, 0.5))
def test_clipped_surrogate_against_a_loop(cases: list[tuple[float, float, float, bool]], clip_range: float) -> None:
    cases = [*cases, (0.1, 0.0, 1.0, True)]
    gains = []
    for new, old, advantage, kept in cases:
        ratio = math.exp(new - old)
        limited = min(max(ratio, 1 - clip_range), 1 + clip_range)
        if kept:
            gains.append(min(ratio * advantage, limited * advantage))
    new_rows, old_rows, advantages = (rows([float(case[i]) for case in cases]) for i in range(3))
    mask = torch.tensor([[case[3] for case in cases]])
    loss, _ = clipped_surrogate(new_rows, old_rows, advantages, clip_range, mask)
    assert loss.item() == pytest.approx(-sum(gains) / len(gains), rel=1e-9, abs=1e-9)


def test_at_unchanged_weights_the_surrogate_is_the_plain_policy_gradient() -> None:
    log_probs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    advantages = torch.tensor([[1.0], [-2.0], [0.5], [3.0]])
    loss, metrics = clipped_surrogate(log_probs, log_probs.detach(), advantages, 1e-4)
    loss.backward()
    assert log_probs.grad is not None
    torch.testing.assert_close(log_probs.grad, -advantages.expand(4, 3) / 12)
    assert metrics["clip_fraction"] == 0 and metrics["approx_kl"] == 0 and metrics["ratio_mean"] == 1


def test_prompt_statistics_use_the_batch_until_a_prompt_is_known() -> None:
    tracker = PromptStatistics(buffer_size=4, min_count=3)
    first = tracker.advantages(["a", "a", "b", "b"], torch.tensor([1.0, 2.0, 3.0, 6.0]))
    spread = python_statistics.pstdev([1, 2, 3, 6])
    torch.testing.assert_close(first, (torch.tensor([1.0, 2, 3, 6]) - 3) / spread)
    second = tracker.advantages(["a", "b"], torch.tensor([6.0, 0.0]))  # a: 1, 2, 6; b: 3, 6, 0: both are known now
    spreads = python_statistics.pstdev([1, 2, 6]), python_statistics.pstdev([3, 6, 0])
    torch.testing.assert_close(second, torch.tensor([(6 - 3) / spreads[0], (0 - 3) / spreads[1]]))


def test_prompt_statistics_forget_what_left_the_buffer_and_resume() -> None:
    tracker = PromptStatistics(buffer_size=2, min_count=2)
    tracker.advantages(["a"] * 3, torch.tensor([100.0, 1.0, 3.0]))
    again = PromptStatistics(buffer_size=2, min_count=2)
    again.load_state_dict(tracker.state_dict())
    assert again.state_dict() == {"a": [1.0, 3.0]}
    for either in (tracker, again):
        torch.testing.assert_close(
            either.advantages(["a"], torch.tensor([5.0])), torch.tensor([1.0]), atol=1e-5, rtol=0
        )


def test_an_abstaining_reward_gives_no_advantage_and_spoils_no_other() -> None:
    tracker = PromptStatistics()
    got = tracker.advantages(["a", "b", "a"], torch.tensor([1.0, float("nan"), 3.0]))
    torch.testing.assert_close(got, torch.tensor([-1.0, 0.0, 1.0]), atol=1e-5, rtol=0)
    assert tracker.state_dict() == {"a": [1.0, 3.0]}
    nothing = PromptStatistics().advantages(["a"], torch.tensor([float("nan")]))
    assert nothing.tolist() == [0.0]


def test_prompt_statistics_of_equal_rewards_are_zero() -> None:
    assert PromptStatistics().advantages(["a"] * 20, torch.full((20,), 0.1)).abs().max() < 1e-6


def test_prompt_statistics_refuse_a_count_that_the_buffer_cannot_hold() -> None:
    with pytest.raises(UserError, match="min_count 8 and buffer_size 4, allowed is 1 <= min_count <= buffer_size"):
        PromptStatistics(buffer_size=4, min_count=8)


def test_group_and_leave_one_out_advantages() -> None:
    rewards = rows([1.0, 2.0, 6.0], [5.0, 5.0, 5.0])
    spread = python_statistics.pstdev([1, 2, 6]) + 1e-4
    torch.testing.assert_close(group_advantages(rewards), rows([-2 / spread, -1 / spread, 3 / spread], [0.0, 0.0, 0.0]))
    torch.testing.assert_close(leave_one_out_advantages(rewards), rows([1 - 4.0, 2 - 3.5, 6 - 1.5], [0.0, 0.0, 0.0]))
    assert group_advantages(rows([3.0])).tolist() == [[0.0]]
    with pytest.raises(UserError, match="groups of 1, allowed is 2 or more"):
        leave_one_out_advantages(rows([3.0]))


def test_whiten() -> None:
    values = rows([1.0, 2.0, 3.0], [4.0, 5.0, 100.0])
    mask = torch.tensor([[True] * 3, [True, True, False]])
    got = whiten(values, mask)
    torch.testing.assert_close(got, (values - 3) / math.sqrt(2) * mask)
    assert whiten(values).mean().item() == pytest.approx(0) and whiten(values).std(
        correction=0
    ).item() == pytest.approx(1)
    assert whiten(values, torch.zeros_like(mask)).eq(0).all()
    assert whiten(torch.full((10,), -3.7)).abs().max() < 1e-6  # equal ones, whose mean float32 rounds


def test_kl_estimators_against_the_exact_kl_of_two_gaussians() -> None:
    here, start = torch.distributions.Normal(0.3, 1.0), torch.distributions.Normal(0.0, 1.2)
    exact = torch.distributions.kl_divergence(here, start).item()
    drawn = 0.3 + torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_probs, reference = here.log_prob(drawn), start.log_prob(drawn)
    assert kl_k1(log_probs, reference).mean().item() == pytest.approx(exact, abs=0.003)
    assert kl_k3(log_probs, reference).mean().item() == pytest.approx(exact, abs=0.002)
    places = torch.linspace(-9, 9, 20_001, dtype=torch.float64)  # k2 is biased: its own mean, by quadrature
    here_there, start_there = here.log_prob(places), start.log_prob(places)
    biased = torch.trapezoid(here_there.exp() * (here_there - start_there) ** 2 / 2, places).item()
    assert kl_k2(log_probs, reference).mean().item() == pytest.approx(biased, abs=0.001)
    assert kl_k3(log_probs, reference).min() >= 0 and kl_k1(log_probs, reference).min() < 0


def test_kl_estimators_by_hand() -> None:
    log_probs, reference = rows([0.0, 1.0]), rows([math.log(2), 1.0])  # ρ = 2 and 1
    torch.testing.assert_close(kl_k1(log_probs, reference), rows([-math.log(2), 0.0]))
    torch.testing.assert_close(kl_k2(log_probs, reference), rows([math.log(2) ** 2 / 2, 0.0]))
    torch.testing.assert_close(kl_k3(log_probs, reference), rows([1 - math.log(2), 0.0]))


def test_gae_by_hand() -> None:
    advantages, returns = gae(rows([0.0, 0.0, 1.0]), rows([0.5, 0.5, 0.5]), discount=0.9, decay=0.8)
    last = 1 - 0.5
    middle = 0.9 * 0.5 - 0.5 + 0.72 * last
    first = 0.9 * 0.5 - 0.5 + 0.72 * middle
    torch.testing.assert_close(advantages, rows([first, middle, last]))
    torch.testing.assert_close(returns, advantages + 0.5)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=7), st.floats(0, 1), st.floats(0, 1),
)  # fmt: skip
def test_gae_against_the_double_sum(steps: list[tuple[float, float]], discount: float, decay: float) -> None:
    reward, value = ([step[i] for step in steps] for i in (0, 1))
    after = [*value[1:], 0.0]
    surprise = [r + discount * n - v for r, v, n in zip(reward, value, after, strict=True)]
    expected = [
        sum((discount * decay) ** (later - now) * surprise[later] for later in range(now, len(steps)))
        for now in range(len(steps))
    ]
    advantages, _ = gae(rows(reward), rows(value), discount=discount, decay=decay)
    torch.testing.assert_close(advantages, rows(expected))


def test_gae_with_decay_1_and_no_discount_is_the_reward_to_go_minus_the_value() -> None:
    rewards, values = torch.randn(2, 2, 6, generator=torch.Generator().manual_seed(0))
    advantages, returns = gae(rewards, values, discount=1.0, decay=1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(advantages, to_go - values)


@pytest.mark.parametrize(("kl", "error"), [(6.0, 0.0), (6.6, 0.1), (60.0, 0.2), (5.1, -0.15), (-1.0, -0.2)])
def test_adaptive_kl_by_hand(kl: float, error: float) -> None:
    weight = AdaptiveKL(0.2, target=6.0, horizon=1000)
    weight.update(kl, 100)
    assert weight.beta == pytest.approx(0.2 * (1 + error / 10))
    again = AdaptiveKL(1.0, target=6.0)
    again.load_state_dict(weight.state_dict())
    assert again.beta == weight.beta


def test_adaptive_kl_settles_where_the_kl_is_the_target_and_never_turns_its_sign() -> None:
    weight = AdaptiveKL(0.001, target=2.0, horizon=10)
    for _ in range(600):
        weight.update(1 / weight.beta, 1)  # a policy that goes farther the less it is held
    assert weight.beta == pytest.approx(0.5, rel=0.01)
    weight.update(0.0, 10**9)
    assert weight.beta > 0
    constant = AdaptiveKL(0.1)
    constant.update(100.0, 10)
    assert constant.beta == 0.1
