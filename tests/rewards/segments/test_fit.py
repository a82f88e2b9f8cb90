"""Segment rewards find a planted reward of positions from every kind of label, the same for the same seed."""

from typing import Any

import pytest
import torch
from scipy.stats import spearmanr

from mmrlhf.errors import UserError
from mmrlhf.rewards.segments.fit import fit_segments, held_out_figures
from mmrlhf.rewards.segments.labels import SequencePair, SpanLabel, hold_out, tabulate_labels
from mmrlhf.rewards.segments.reward import SegmentReward
from tests.rewards.segments.planted import FEATURES, comparisons, planted, scores, tags

SEEN, UNSEEN = planted(100, 0), planted(50, 1)
QUICK: dict[str, Any] = {"epochs": 25, "learning_rate": 1e-2}
SHORT: dict[str, Any] = {"epochs": 6, "ensemble": 2, "hidden": 8, "progress": False}


def fit(spans: list[SpanLabel], pairs: list[SequencePair], **settings: Any) -> SegmentReward:
    return fit_segments(SEEN.features, SEEN.mask, spans, pairs, **({"seed": 0, "progress": False} | settings))


def same(first: SegmentReward, second: SegmentReward) -> bool:
    other = second.head.state_dict()
    return all(torch.equal(value, other[name]) for name, value in first.head.state_dict().items())


def rank_correlation(reward: SegmentReward) -> float:
    """Of the rewards of unseen positions with what they are worth."""
    found = reward(UNSEEN.features, UNSEEN.mask)[UNSEEN.mask]
    return float(spearmanr(found.numpy(), UNSEEN.worth[UNSEEN.mask].numpy()).statistic)


def mixed() -> tuple[list[SpanLabel], list[SequencePair]]:
    """Tags on a third of the sequences, scores on another, comparisons among the rest."""
    third = [s for s in tags(SEEN) if s.row < 34] + [s for s in scores(SEEN) if 34 <= s.row < 67]
    return third, [p for p in comparisons(SEEN, each=6) if min(p[:2]) >= 67]


@pytest.mark.parametrize(
    ("spans", "pairs"),
    [
        pytest.param(tags(SEEN), [], id="tags"),
        pytest.param(scores(SEEN), [], id="scores"),
        pytest.param([], comparisons(SEEN), id="comparisons"),
        pytest.param(*mixed(), id="mixed"),
    ],
)
def test_a_planted_reward_of_positions_is_found_from(spans: list[SpanLabel], pairs: list[SequencePair]) -> None:
    # comparisons join nearly all sequences into one family, of which none can be held out
    reward = fit(spans, pairs, **QUICK)
    assert rank_correlation(reward) > 0.9


def test_the_sum_over_positions_can_be_what_a_score_tells_of() -> None:
    sums = [label._replace(value=(float(label.value) - 50) / 10 * (label.end - label.start)) for label in scores(SEEN)]
    assert rank_correlation(fit(sums, [], **QUICK, pooling="sum")) > 0.9


def test_scores_set_the_unit_and_level_of_the_reward() -> None:
    reward = fit(scores(SEEN), [], epochs=40, learning_rate=0.03, hidden=0, dropout=0.0, weight_decay=0.0)
    found, truth = reward(UNSEEN.features, UNSEEN.mask)[UNSEEN.mask], 50 + 10 * UNSEEN.worth[UNSEEN.mask]
    assert float((found - truth).abs().mean()) < 0.2 * float((truth - truth.mean()).abs().mean())


def test_tags_find_their_place_on_a_scale_of_scores_that_is_far_from_0() -> None:
    far = [label._replace(value=float(label.value) + 1000) for label in scores(SEEN)]
    reward = fit([*far, *tags(SEEN, 1)], [], **QUICK)
    spans = [(row, 0, 1) for row in range(50)]
    guessed = reward.tag_probabilities(UNSEEN.features, spans, UNSEEN.mask).argmax(1)
    worth = UNSEEN.worth[:, 0]
    assert float((guessed == (worth > -0.8).int() + (worth > 0.8).int()).float().mean()) > 0.75


def test_a_label_of_no_weight_to_speak_of_teaches_nothing() -> None:
    flipped = [label._replace(value=100 - float(label.value), weight=1e-6) for label in scores(SEEN, 1)]
    assert rank_correlation(fit([*scores(SEEN), *flipped], [], **QUICK)) > 0.9
    heavy = [label._replace(weight=1e6) for label in flipped]
    assert rank_correlation(fit([*scores(SEEN), *heavy], [], **QUICK)) < -0.9


def test_the_same_seed_gives_the_same_reward_and_another_another() -> None:
    spans, pairs = mixed()
    first, second, other = (fit(spans, pairs, **SHORT | {"seed": seed}) for seed in (3, 3, 4))
    assert same(first, second) and not same(first, other)


def test_nothing_but_the_seed_decides_not_even_a_global_generator() -> None:
    torch.manual_seed(1)
    first = fit(tags(SEEN), [], **SHORT)
    torch.manual_seed(2)
    assert same(first, fit(tags(SEEN), [], **SHORT))


def test_padding_has_no_influence_nor_have_sequences_without_a_label() -> None:
    spans, pairs = [s for s in tags(SEEN) if s.row < 50], [p for p in comparisons(SEEN) if max(p[:2]) < 50]
    dirty = SEEN.features.masked_fill(~SEEN.mask.unsqueeze(-1), torch.nan)
    dirty[50:] = 1e9
    dirty[60] = torch.nan
    clean, other = (
        fit_segments(features, SEEN.mask, spans, pairs, seed=0, **SHORT) for features in (SEEN.features, dirty)
    )
    assert same(clean, other)


def test_features_stay_as_they_are_and_may_be_of_half_precision_and_with_a_gradient() -> None:
    features = SEEN.features.to(torch.bfloat16).requires_grad_()
    before = features.detach().clone()
    reward = fit_segments(features, SEEN.mask, tags(SEEN), seed=0, **SHORT)
    assert torch.equal(features, before) and features.grad is None
    assert same(reward, fit_segments(before.float(), SEEN.mask, tags(SEEN), seed=0, **SHORT))


@pytest.mark.parametrize("epochs", [100, 4])
def test_the_epoch_of_the_lowest_held_out_loss_is_kept(epochs: int) -> None:
    generator = torch.Generator().manual_seed(0)  # chance alone: the longer the training, the worse what was held out
    spans = [SpanLabel(r, 0, 1, float(torch.randn((), generator=generator))) for r in range(60)]
    history: list[dict[str, Any]] = []
    reward = fit(spans, [], epochs=epochs, patience=5, validation=0.3, dropout=0.0, on_epoch=history.append)
    losses = [line["held_out_loss"] for line in history]
    best = losses.index(min(losses))
    assert len(history) == min(best + 5 + 1, epochs)
    assert best < len(history) - 1  # else the last epoch would do
    table = tabulate_labels(spans, [], SEEN.mask)
    held_out = hold_out(table, len(SEEN.mask), None, 0.3, 0)
    assert held_out.sum() == 18
    rest = table.of(held_out.nonzero().flatten())
    assert held_out_figures(reward.head, SEEN.features, SEEN.mask, rest)["held_out_loss"] == pytest.approx(losses[best])


def test_figures_of_each_epoch_are_reported() -> None:
    groups = [row // 2 for row in range(100)]
    spans = [*tags(SEEN), *(s._replace(value=float(s.value)) for s in scores(SEEN, 1))]
    pairs = [SequencePair(i, i + 1, float(t > u)) for i, (t, u) in
             enumerate(zip(SEEN.totals()[:-1], SEEN.totals()[1:], strict=True)) if i % 2 == 0]  # fmt: skip
    history: list[dict[str, Any]] = []
    fit(spans, pairs, **SHORT | QUICK | {"groups": groups}, on_epoch=history.append)
    assert [line["epoch"] for line in history] == list(range(25))
    assert history[0].keys() == {"epoch", "loss", "held_out_loss", "held_out_tag_accuracy", "held_out_score_rmse",
                                 "held_out_pair_accuracy", "seconds"}  # fmt: skip
    assert history[-1]["loss"] < history[0]["loss"] and history[-1]["held_out_loss"] < history[0]["held_out_loss"]
    assert history[-1]["held_out_score_rmse"] < history[0]["held_out_score_rmse"]
    assert 0.5 < history[-1]["held_out_tag_accuracy"] <= 1 and history[-1]["seconds"] > 0


@pytest.mark.parametrize("changes", [{"validation": 0.0}, {"groups": ["one prompt"] * 100}])
def test_without_anything_to_hold_out_all_epochs_are_run(changes: dict[str, Any]) -> None:
    history: list[dict[str, Any]] = []
    fit(tags(SEEN), [], **SHORT | {"patience": 1} | changes, on_epoch=history.append)
    assert len(history) == 6 and all(line.keys() == {"epoch", "loss", "seconds"} for line in history)


def test_a_large_share_held_out_leaves_something_to_learn_from() -> None:
    spans = [SpanLabel(row, 0, 1, float(row)) for row in range(6)]
    history: list[dict[str, Any]] = []
    fit(spans, [], **SHORT | {"validation": 0.99}, on_epoch=history.append)
    assert "held_out_loss" in history[0]


@pytest.mark.parametrize(
    "changes",
    [{"hidden": 0, "learning_rate": 0.03}, {"ensemble": 1}, {"batch_size": 1, "epochs": 2}, {"dropout": 0.0}],
)
def test_the_ends_of_the_ranges_of_settings_work(changes: dict[str, Any]) -> None:
    reward = fit(tags(SEEN), [], **SHORT | QUICK | changes)
    assert rank_correlation(reward) > 0.5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 0}, "epochs got 0, allowed is 1 or more"),
        ({"ensemble": 0}, "ensemble got 0, allowed is 1 or more"),
        ({"hidden": -1}, "hidden got -1, allowed is 0 or more"),
        ({"dropout": 1.0}, "dropout got 1.0, allowed is from 0 to below 1"),
        ({"learning_rate": 0.0}, "learning_rate got 0.0, allowed is above 0"),
        ({"learning_rate": float("nan")}, "learning_rate got nan"),
        ({"weight_decay": -0.1}, "weight_decay got -0.1, allowed is 0 or more"),
        ({"batch_size": 0}, "batch_size got 0, allowed is 1 or more"),
        ({"patience": 0}, "patience got 0, allowed is 1 or more"),
        ({"validation": 1.0}, "validation got 1.0, allowed is from 0 to below 1"),
        ({"groups": ["a"]}, "got 1 groups for 100 sequences"),
        ({"learning_rate": 1e30}, r"the loss is no longer a number in epoch \d+: lower learning_rate"),
    ],
)
def test_a_setting_that_is_not_allowed_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        fit(scores(SEEN), [], **SHORT | changes)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    features = SEEN.features.clone()
    features[3, 0, FEATURES - 1] = value
    with pytest.raises(UserError, match="the features of a labelled sequence are not finite: leave that sequence out"):
        fit_segments(features, SEEN.mask, tags(SEEN), seed=0, **SHORT)


def test_labels_that_are_not_allowed_are_refused() -> None:
    with pytest.raises(UserError, match="got no label"):
        fit([], [])
