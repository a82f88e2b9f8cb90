"""Preference losses against closed forms, independent computations, finite differences and what must always hold."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from mmrlhf.losses import (
    bradley_terry,
    davidson,
    ordinal,
    plackett_luce,
    prompt_weights,
    rao_kupper,
    smooth_labels,
    text_negatives,
    with_margins,
)

MARGINS = torch.tensor([1.5, -0.3, 0.0, 4.0], dtype=torch.float64)
LABELS = torch.tensor([1.0, 1.0, 0.5, 0.0], dtype=torch.float64)
rows = st.lists(st.tuples(st.floats(-30, 30), st.sampled_from([0.0, 0.2, 0.5, 1.0])), min_size=1, max_size=6)


def column(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def numeric_gradient(loss, values: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
    """Central differences."""
    slopes = []
    for i in range(len(values)):
        moved = torch.zeros_like(values)
        moved[i] = step
        slopes.append((loss(values + moved) - loss(values - moved)) / (2 * step))
    return torch.stack(slopes)


def test_bradley_terry_closed_form() -> None:
    loss, metrics = bradley_terry(column([math.log(3)]), column([1.0]))
    assert float(loss) == pytest.approx(-math.log(3 / 4))  # σ(log 3) = 3/4
    assert metrics == {"loss": pytest.approx(-math.log(3 / 4)), "accuracy": 1.0, "margin": pytest.approx(math.log(3))}


def test_a_tie_scored_as_a_tie_costs_nothing_and_another_margin_does() -> None:
    assert float(bradley_terry(column([0.0]), column([0.5]))[0]) == pytest.approx(0, abs=1e-12)
    tilted, metrics = bradley_terry(column([2.0]), column([0.5]))
    p = 1 / (1 + math.exp(-2))
    assert float(tilted) == pytest.approx(0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p)))
    assert math.isnan(metrics["accuracy"])  # no strict label


def test_bradley_terry_is_the_weighted_kl_of_a_softmax_over_two_scores() -> None:
    """PickScore's criterion as it is written, over scores rather than margins, in numpy."""
    generator = np.random.default_rng(0)
    scores, labels, weights = (
        generator.normal(size=(50, 2)) * 3,
        generator.choice([0, 0.3, 0.5, 1], 50),
        generator.random(50),
    )
    softmax = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    targets = np.stack([labels, 1 - labels], axis=1)
    kl = np.sum(np.where(targets > 0, targets * np.log(np.maximum(targets, 1e-300) / softmax), 0), axis=1)
    loss, _ = bradley_terry(torch.tensor(scores[:, 0] - scores[:, 1]), torch.tensor(labels), torch.tensor(weights))
    assert float(loss) == pytest.approx(float((weights * kl).sum() / weights.sum()))


@pytest.mark.parametrize("name", ["bradley_terry", "davidson", "rao_kupper"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    losses = {
        "bradley_terry": lambda m: bradley_terry(m, LABELS)[0],
        "davidson": lambda m: davidson(m, LABELS, column([0.3])[0])[0],
        "rao_kupper": lambda m: rao_kupper(m, LABELS)[0],
    }
    margins = MARGINS.clone().requires_grad_(True)
    losses[name](margins).backward()
    assert margins.grad is not None
    torch.testing.assert_close(margins.grad, numeric_gradient(losses[name], MARGINS), rtol=1e-6, atol=1e-8)


@given(rows)
def test_bradley_terry_is_never_negative_and_blind_to_the_order(values: list[tuple[float, float]]) -> None:
    margins, labels = (column(list(part)) for part in zip(*values, strict=True))
    loss, _ = bradley_terry(margins, labels)
    assert float(loss) >= -1e-12
    assert float(bradley_terry(-margins, 1 - labels)[0]) == pytest.approx(float(loss), abs=1e-9)
    assert float(bradley_terry(margins, labels, torch.full_like(margins, 7))[0]) == pytest.approx(float(loss), abs=1e-9)


def test_huge_margins_stay_finite() -> None:
    loss, _ = bradley_terry(torch.tensor([1e4, -1e4]), torch.tensor([0.0, 1.0]))
    assert float(loss) == pytest.approx(1e4)


@pytest.mark.parametrize(("r_0", "r_1"), [(0.0, 0.0), (1.2, -0.4), (-2.0, 3.0)])
def test_davidson_and_rao_kupper_are_their_published_probabilities(r_0: float, r_1: float) -> None:
    a, b, nu, theta = math.exp(r_0), math.exp(r_1), 0.7, 5.0
    total = a + b + nu * math.sqrt(a * b)
    published = {1.0: a / total, 0.0: b / total, 0.5: nu * math.sqrt(a * b) / total}
    kupper = {1.0: a / (a + theta * b), 0.0: b / (b + theta * a)}
    kupper[0.5] = 1 - kupper[1.0] - kupper[0.0]
    for label in (1.0, 0.5, 0.0):
        margin, y = column([r_0 - r_1]), column([label])
        assert float(davidson(margin, y, column([math.log(nu)])[0])[0]) == pytest.approx(-math.log(published[label]))
        assert float(rao_kupper(margin, y, theta)[0]) == pytest.approx(-math.log(kupper[label]))


def test_rao_kupper_near_one_and_davidson_with_rare_ties_are_bradley_terry() -> None:
    margins, labels = column([1.5, -0.3, 4.0]), column([1.0, 1.0, 0.0])
    plain = float(bradley_terry(margins, labels)[0])
    assert float(rao_kupper(margins, labels, 1 + 1e-9)[0]) == pytest.approx(plain)
    assert float(davidson(margins, labels, column([-40.0])[0])[0]) == pytest.approx(plain)


def test_what_tie_losses_do_not_take() -> None:
    with pytest.raises(UserError, match=r"labels got 0\.3, allowed are 0, 0\.5 and 1"):
        davidson(column([1.0, 1.0]), column([1.0, 0.3]), column([0.0])[0])
    with pytest.raises(UserError, match="threshold got 1.0, allowed is above 1"):
        rao_kupper(column([1.0]), column([1.0]), 1.0)


def test_prompt_weights_count_every_prompt_alike() -> None:
    assert prompt_weights(["a", "b", "a", "a"]).tolist() == pytest.approx([1 / 6, 1 / 2, 1 / 6, 1 / 6])


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=20))
def test_prompt_weights_sum_to_one(prompts: list[str]) -> None:
    weights = prompt_weights(prompts)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
    for prompt in set(prompts):
        share = sum(float(w) for w, p in zip(weights, prompts, strict=True) if p == prompt)
        assert share == pytest.approx(1 / len(set(prompts)), abs=1e-5)


def test_plackett_luce_sums_to_one_over_all_orders() -> None:
    scores = column([0.3, -1.0, 2.0, 0.5])
    total = 0.0
    for order in itertools.permutations(range(4)):
        ranks = torch.empty(4, dtype=torch.float64)
        ranks[list(order)] = torch.arange(1.0, 5.0, dtype=torch.float64)
        loss, _ = plackett_luce(scores.unsqueeze(0), ranks.unsqueeze(0))
        by_hand = 1.0
        for place in range(4):
            by_hand *= float(scores[order[place]].exp() / scores[list(order[place:])].exp().sum())
        assert float(loss) == pytest.approx(-math.log(by_hand))
        total += by_hand
    assert total == pytest.approx(1)


def test_plackett_luce_of_two_is_bradley_terry_and_of_one_best_a_softmax() -> None:
    scores = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss, _ = plackett_luce(scores, torch.tensor([[1.0, 2.0]], dtype=torch.float64).expand(6, 2))
    assert float(loss) == pytest.approx(float(bradley_terry(scores[:, 0] - scores[:, 1], torch.ones(6).double())[0]))
    five = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ranks = torch.full((3, 5), 2.0, dtype=torch.float64)
    best = torch.tensor([4, 0, 2])
    ranks[torch.arange(3), best] = 1.0
    assert float(plackett_luce(five, ranks)[0]) == pytest.approx(float(torch.nn.functional.cross_entropy(five, best)))


def test_plackett_luce_leaves_absent_items_out_and_counts_equal_ranks_as_breslow() -> None:
    scores = torch.tensor([[0.2, 1.0, -0.5, 7.0]], dtype=torch.float64, requires_grad=True)
    ranks = torch.tensor([[1.0, 1.0, 2.0, math.nan]], dtype=torch.float64)
    loss, metrics = plackett_luce(scores, ranks)
    everything = math.log(math.exp(0.2) + math.exp(1.0) + math.exp(-0.5))
    assert float(loss.detach()) == pytest.approx(2 * everything - 0.2 - 1.0)
    assert metrics["accuracy"] == 1.0
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient.isfinite().all() and gradient[0, 3] == 0
    flat = numeric_gradient(lambda s: plackett_luce(s.unsqueeze(0), ranks)[0].detach(), scores.detach()[0])
    torch.testing.assert_close(gradient[0], flat, atol=1e-6, rtol=1e-5)
    with pytest.raises(UserError, match="fewer than 2 items"):
        plackett_luce(scores, torch.tensor([[1.0, math.nan, math.nan, math.nan]], dtype=torch.float64))


def test_ordinal_is_proportional_odds() -> None:
    """Against statsmodels' probabilities of an ordered logit."""
    from statsmodels.miscmodels.ordinal_model import OrderedModel

    thresholds, scores = column([-1.0, 0.2, 1.5]), column([-2.0, 0.0, 0.3, 4.0])
    steps = np.array([-1.0, math.log(1.2), math.log(1.3)])  # the first threshold, then the logs of the gaps
    model = OrderedModel(np.array([0, 1, 2, 3]), scores.numpy()[:, None], distr="logit")
    chances = model.predict(np.array([1.0, *steps]), exog=scores.numpy()[:, None])
    for level in range(1, 5):
        losses = [float(ordinal(scores[i : i + 1], torch.tensor([level]), thresholds)[0]) for i in range(4)]
        np.testing.assert_allclose(np.exp(-np.array(losses)), np.asarray(chances)[:, level - 1], rtol=1e-5)
    veto, _ = ordinal(scores, torch.tensor([1, 2, 2, 2]), column([0.0]))
    target = torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert float(veto) == pytest.approx(
        float(torch.nn.functional.binary_cross_entropy_with_logits(scores, target)), rel=1e-6
    )
    with pytest.raises(UserError, match="ratings got 0 to 2, allowed is 1 to 2"):
        ordinal(scores[:2], torch.tensor([0, 2]), column([0.0]))


def test_ordinal_has_a_gradient_far_outside_its_thresholds() -> None:
    scores = column([-40.0, 40.0, 40.0]).requires_grad_()
    thresholds = column([-1.0, 1.0]).requires_grad_()
    loss, _ = ordinal(scores, torch.tensor([3, 1, 2]), thresholds)
    gradient, slopes = torch.autograd.grad(3 * loss, (scores, thresholds))
    assert slopes.isfinite().all()
    torch.testing.assert_close(gradient, column([-1.0, 1.0, 1.0]), atol=1e-6, rtol=1e-6)


def test_text_negatives_is_a_cross_entropy_over_prompts() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own, weights = torch.tensor([0, 2, 1, 1]), column([1.0, 0.0, 2.0, 1.0])
    chances = torch.softmax(logits, 1)[torch.arange(4), own]
    loss, metrics = text_negatives(logits, own, weights)
    assert float(loss) == pytest.approx(float(-(weights * chances.log()).sum() / 4))
    assert metrics["accuracy"] == pytest.approx(float((logits.argmax(1) == own).double().mean()))


def test_a_wanted_margin_moves_the_winner_and_smoothing_the_label() -> None:
    moved = with_margins(column([2.0, 2.0, 2.0]), column([1.0, 0.0, 0.5]), column([0.5, 0.5, 0.5]))
    assert moved.tolist() == [1.5, 2.5, 2.0]
    torch.testing.assert_close(smooth_labels(column([1.0, 0.0, 0.5, 0.25]), 0.1), column([0.9, 0.1, 0.5, 0.3]))
    with pytest.raises(UserError, match="label smoothing got 0.5"):
        smooth_labels(LABELS, 0.5)
