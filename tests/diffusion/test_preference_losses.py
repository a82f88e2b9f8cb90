"""Losses of direct preference methods: closed forms, and the papers' formulas computed independently."""

import math

import pytest
import torch
from torch.distributions import Normal

from diffusion.preference_losses import (
    d3po_loss,
    diffusion_dpo_loss,
    diffusion_kto_loss,
    implicit_rewards,
    preference_loss,
)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_at_the_start_every_loss_is_that_of_a_coin() -> None:
    zeros, sure = torch.zeros(3), torch.ones(3)
    loss, figures = diffusion_dpo_loss(zeros, zeros, sure)
    assert loss.item() == pytest.approx(math.log(2))
    assert (figures["implicit_accuracy"], figures["implicit_margin"]) == (0.5, 0)
    step = zeros.unsqueeze(1)
    assert d3po_loss(step, step, step, step, 2000.0)[0].item() == pytest.approx(math.log(2))
    assert diffusion_kto_loss(zeros, torch.tensor([1.0, -1.0, 0.5]))[0].item() == pytest.approx(0.5)


def test_implicit_rewards() -> None:
    found = implicit_rewards(torch.tensor([1.0, 0.5]), torch.tensor([0.9, 0.6]), 20.0)
    torch.testing.assert_close(found, torch.tensor([-1.0, 1.0]))


def test_diffusion_dpo_is_the_formula_of_the_paper() -> None:
    """Norms as means over dimensions, pair after pair in plain Python."""
    noise, *predictions = drawn(5, 3, 4, 2, 2)  # of the policy and the start for the winner, then for the loser
    beta, expected = 3.0, []
    for pair in range(3):
        policy_w, start_w, policy_l, start_l = (
            sum((a - b) ** 2 for a, b in zip(noise[pair].flatten().tolist(), p[pair].flatten().tolist(), strict=True))
            / 16
            for p in predictions
        )
        expected.append(-math.log(sigmoid(-0.5 * beta * ((policy_w - start_w) - (policy_l - start_l)))))
    errors = [(noise - prediction).square().mean(dim=(1, 2, 3)) for prediction in predictions]
    rewards = [implicit_rewards(errors[i], errors[i + 1], beta) for i in (0, 2)]
    loss, figures = diffusion_dpo_loss(rewards[0], rewards[1], torch.ones(3).double())
    assert loss.item() == pytest.approx(sum(expected) / 3, rel=1e-9)
    assert figures["implicit_accuracy"] == pytest.approx(sum(each < math.log(2) for each in expected) / 3)
    assert figures["implicit_margin"] == pytest.approx(figures["winner_reward"] - figures["loser_reward"])


def test_gradients_are_those_of_finite_differences() -> None:
    winners, losers, labels = drawn(4, seed=1), drawn(4, seed=2), torch.tensor([1.0, 0.9, 0.6, 1.0]).double()
    assert torch.autograd.gradcheck(
        lambda won, lost: diffusion_dpo_loss(won, lost, labels)[0], (winners.requires_grad_(), losers.requires_grad_())
    )
    steps = [drawn(2, 3, seed=seed) for seed in range(4)]
    assert torch.autograd.gradcheck(
        lambda won, lost: d3po_loss(won, lost, steps[2], steps[3], 0.7)[0],
        (steps[0].requires_grad_(), steps[1].requires_grad_()),
    )


def test_a_soft_label_weighs() -> None:
    """The first step is (2·label − 1) of a sure one's; the loss is least, and 0, where σ(margin) is the label."""
    steps = []
    for label in (1.0, 0.8):
        margin = torch.zeros(1, requires_grad=True)
        preference_loss(margin, torch.tensor([label]))[0].backward()
        assert margin.grad is not None
        steps.append(margin.grad.item())
    assert steps == pytest.approx([-0.5, -0.3])
    least = torch.tensor([math.log(0.8 / 0.2)], requires_grad=True)
    loss, _ = preference_loss(least, torch.tensor([0.8]))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and least.grad is not None and abs(least.grad.item()) < 1e-6


def test_d3po_is_the_formula_of_the_paper() -> None:
    """From Gaussian steps by torch's own densities, step after step."""
    means, taken = drawn(4, 2, 3), drawn(2, 2, 3, seed=1)  # policy's and start's means, for winners then losers
    log_probs = [Normal(mean, 0.7).log_prob(taken[i // 2]) for i, mean in enumerate(means)]
    policy_w, start_w, policy_l, start_l = log_probs
    ratios = [[math.exp(now - then) for now, then in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)]
              for a, b in ((policy_w, start_w), (policy_l, start_l))]  # fmt: skip
    expected = [-math.log(sigmoid(0.3 * (math.log(won) - math.log(lost)))) for won, lost in zip(*ratios, strict=True)]
    loss, figures = d3po_loss(policy_w, policy_l, start_w, start_l, 0.3)
    assert loss.item() == pytest.approx(sum(expected) / 6, rel=1e-9) == figures["loss"]


def test_kto_in_closed_form() -> None:
    """Rewards 2 and −2 have mean 0: each is 2 on its side."""
    loss, figures = diffusion_kto_loss(torch.tensor([2.0, -2.0]), torch.tensor([1.0, -1.0]))
    assert loss.item() == pytest.approx(1 - sigmoid(2))
    assert figures == {
        "loss": pytest.approx(1 - sigmoid(2)), "implicit_accuracy": 1.0, "implicit_margin": 2.0, "reference_point": 0.0
    }  # fmt: skip


def test_the_reference_point_of_kto_is_a_constant_and_not_below_0() -> None:
    rewards = torch.tensor([3.0, 1.0], requires_grad=True)
    loss, figures = diffusion_kto_loss(rewards, torch.tensor([1.0, -1.0]))
    loss.backward()
    slope = sigmoid(1) * (1 - sigmoid(1)) / 2  # both are 1 from the point 2, on their side
    assert figures["reference_point"] == 2 and rewards.grad is not None
    assert rewards.grad.tolist() == pytest.approx([-slope, slope])
    below = diffusion_kto_loss(torch.tensor([-3.0, -1.0]), torch.tensor([1.0, -1.0]))
    assert below[1]["reference_point"] == 0
    assert below[0].item() == pytest.approx(1 - (sigmoid(-3) + sigmoid(1)) / 2)


def test_a_partly_liked_image_is_the_mean_over_raters() -> None:
    """Three of four like it: w is ½. The other image holds the reference point."""
    rewards = torch.tensor([1.5, 0.5])
    part, like, dislike = (
        diffusion_kto_loss(rewards, torch.tensor([liked, 1.0]))[0].item() for liked in (0.5, 1.0, -1.0)
    )
    assert part == pytest.approx(0.75 * like + 0.25 * dislike)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_margins_stay_finite(size: float) -> None:
    margins = torch.full((2,), size, requires_grad=True)
    loss, _ = preference_loss(margins, torch.ones(2))
    loss.backward()
    assert loss.isfinite() and margins.grad is not None and margins.grad.isfinite().all()
