"""The scorer of positions: spans are pooled, and every kind of label costs, what an independent computation says."""

import numpy as np
import pytest
import torch
from scipy.special import expit, xlogy

from mmrlhf.rewards.segments.head import Pooling, SegmentHead, label_loss, pool_spans
from mmrlhf.rewards.segments.labels import LabelTable, SequencePair, SpanLabel, tabulate_labels

POOLINGS: tuple[Pooling, ...] = ("mean", "sum")
TAGGED = [SpanLabel(0, 0, 2, "misleading", 0.5), SpanLabel(1, 1, 5, "irrelevant", 2.0), SpanLabel(2, 0, 1, "correct"),
          SpanLabel(0, 3, 5, "correct", 1.5)]  # fmt: skip
SCORED = [SpanLabel(2, 1, 3, 4.0, 0.7), SpanLabel(3, 0, 5, -1.0), SpanLabel(1, 0, 2, 0.5, 3.0)]
COMPARED = [SequencePair(0, 1, 1.0, 0.4), SequencePair(2, 3, 0.3), SequencePair(3, 0, 0.5, 2.0)]


def some_rewards(members: int = 3, rows: int = 4, length: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards of positions, and a mask whose rows end at different places, one of them with a hole."""
    mask = torch.arange(length) < torch.tensor([length, length - 1, 3, length])[:rows].unsqueeze(1)
    mask[0, 1] = False
    return torch.randn(members, rows, length, generator=torch.Generator().manual_seed(0)) * mask, mask


def some_head(pooling: Pooling, levels: int = 3) -> SegmentHead:
    """A head whose unit, scales, centre and thresholds all differ from what they start at."""
    head = SegmentHead(2, members=3, levels=levels, pooling=pooling, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        head.unit.fill_(1.7)
        head.log_tag_scale.fill_(0.4)
        head.log_pair_scale.fill_(-0.6)
        head.centre.fill_(0.3)
        head.scorer.gaps.fill_(0.9)
    return head


def by_loop(rewards: np.ndarray, mask: np.ndarray, spans: np.ndarray, pooling: Pooling) -> np.ndarray:
    found = np.zeros((len(rewards), len(spans)))
    for k in range(len(rewards)):
        for i, (row, start, end) in enumerate(spans):
            values = [rewards[k, row, t] for t in range(start, end) if mask[row, t]]
            found[k, i] = np.sum(values) if pooling == "sum" else np.mean(values)
    return found


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("seed", range(4))
def test_spans_are_pooled_as_by_a_loop_whatever_stands_elsewhere(pooling: Pooling, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rewards, mask = generator.normal(size=(2, 5, 9)), generator.random((5, 9)) < 0.7
    mask[:, 4] = True
    spans = np.stack(
        [generator.integers(0, 5, 20), generator.integers(0, 5, 20), generator.integers(5, 10, 20)], axis=1
    )
    used = np.zeros_like(mask)
    for row, start, end in spans[:10]:
        used[row, start:end] = True
    rewards[:, ~(used & mask)] = np.nan
    found = pool_spans(torch.from_numpy(rewards), torch.from_numpy(mask), torch.from_numpy(spans), pooling).numpy()
    np.testing.assert_allclose(found, by_loop(rewards, mask, spans, pooling), rtol=1e-12)
    assert np.isfinite(found[:, :10]).all()


def test_a_huge_reward_before_a_span_leaves_no_rounding_error() -> None:
    rewards = torch.tensor([[[1e8, 0.1, 0.2]]])
    found = pool_spans(rewards, torch.ones(1, 3, dtype=torch.bool), torch.tensor([[0, 1, 3]]), "sum")
    assert float(found) == pytest.approx(0.3, rel=1e-6)


def test_over_padding_alone_a_mean_is_nan_and_a_sum_0() -> None:
    rewards, mask, spans = (
        torch.ones(1, 1, 3),
        torch.tensor([[True, False, False]]),
        torch.tensor([[0, 1, 3], [0, 0, 3]]),
    )
    assert pool_spans(rewards, mask, spans, "sum").tolist() == [[0, 1]]
    mean = pool_spans(rewards, mask, spans, "mean")
    assert mean.isnan().tolist() == [[True, False]] and mean[0, 1] == 1
    assert pool_spans(rewards, mask, spans[:0], "mean").shape == (1, 0)


def expected_losses(head: SegmentHead, rewards: torch.Tensor, mask: torch.Tensor, table: LabelTable) -> np.ndarray:
    """Of each member, the loss of each label: spans, then comparisons."""
    unit, centre = float(head.unit), float(head.centre.detach())
    values = by_loop(rewards.numpy(), mask.numpy(), table.spans.numpy(), head.pooling) / unit
    cuts = np.concatenate([[-np.inf], head.scorer.thresholds.detach().numpy(), [np.inf]])
    losses = np.zeros((len(rewards), len(table)))
    for i, (rating, score) in enumerate(zip(table.ratings.tolist(), table.scores.tolist(), strict=True)):
        if rating:
            logit = np.exp(float(head.log_tag_scale.detach())) * (values[:, i] - centre)
            losses[:, i] = -np.log(expit(logit - cuts[rating - 1]) - expit(logit - cuts[rating]))
        else:
            losses[:, i] = (values[:, i] - score / unit) ** 2 / 2
    whole = np.where(mask.numpy(), rewards.numpy(), 0).sum(-1) / unit
    for i, ((first, second), label) in enumerate(zip(table.pairs.tolist(), table.outcomes.tolist(), strict=True)):
        wins = expit(np.exp(float(head.log_pair_scale.detach())) * (whole[:, first] - whole[:, second]))
        entropy = xlogy(label, label) + xlogy(1 - label, 1 - label)
        losses[:, len(table.spans) + i] = entropy - label * np.log(wins) - (1 - label) * np.log(1 - wins)
    return losses


KINDS = {
    "tags": (TAGGED, []), "two tags": ([TAGGED[0], *TAGGED[2:]], []), "scores": (SCORED, []), "pairs": ([], COMPARED),
    "mixed": ([*TAGGED, *SCORED], COMPARED),
}  # fmt: skip


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_weighted_mean_over_all_labels_alike(kind: str, pooling: Pooling) -> None:
    rewards, mask = some_rewards()
    table = tabulate_labels(*KINDS[kind], mask)
    head = some_head(pooling, table.levels)
    counts = torch.tensor([[1.0, 2, 0, 3], [2, 0, 1, 1], [1, 1, 1, 1]])
    for repeats in (None, counts):
        loss, _ = label_loss(head, rewards, mask, table, repeats)
        own = (
            torch.cat([table.weights, table.pair_weights])
            * (counts if repeats is not None else torch.ones(3, 4))[
                :, torch.cat([table.spans[:, 0], table.pairs[:, 0]])
            ]
        )
        expected = np.average(expected_losses(head, rewards, mask, table), weights=own.numpy())
        assert float(loss.detach()) == pytest.approx(expected, rel=2e-5)


def test_a_resample_is_the_same_as_writing_labels_down_as_often() -> None:
    rewards, mask = some_rewards(members=1)
    head, counts = some_head("mean"), [2, 0, 1, 3]
    table = tabulate_labels(*KINDS["mixed"], mask)
    spans = [label for label in [*TAGGED, *SCORED] for _ in range(counts[label.row])]
    pairs = [pair for pair in COMPARED for _ in range(counts[pair.row_0])]
    written = tabulate_labels(spans, pairs, mask)
    written = LabelTable(**{**vars(written), "ratings": written.ratings.where(written.ratings != 2, 3), "levels": 3})
    counted, _ = label_loss(head, rewards, mask, table, torch.tensor([counts], dtype=torch.float))
    often, _ = label_loss(head, rewards, mask, written)
    torch.testing.assert_close(counted, often)


def test_metrics_tell_what_there_is() -> None:
    mask = torch.ones(2, 2, dtype=torch.bool)
    rewards = torch.tensor([[[3.0, -2.0], [1.0, 1.0]]])
    head = SegmentHead(1, members=1, levels=2)
    tags = [SpanLabel(0, 0, 1, "correct"), SpanLabel(0, 1, 2, "correct"), SpanLabel(1, 0, 1, "misleading")]
    _, metrics = label_loss(head, rewards, mask, tabulate_labels(tags, [], mask))
    assert metrics == {"tag_accuracy": pytest.approx(1 / 3)}
    head.unit.fill_(2.0)
    scores = [SpanLabel(0, 0, 2, 1.5), SpanLabel(1, 0, 1, 3.0)]
    _, metrics = label_loss(head, rewards, mask, tabulate_labels(scores, [SequencePair(0, 1, 0.0)], mask))
    assert metrics == {"score_rmse": pytest.approx(np.sqrt((1.0 + 4.0) / 2)), "pair_accuracy": 1.0}


@pytest.mark.parametrize(("kind", "frozen"), [
    ("tags", {"log_tag_scale", "centre"}), ("scores", {"log_tag_scale", "centre"}),
    ("pairs", {"log_tag_scale", "log_pair_scale", "centre"}), ("mixed", set()),
])  # fmt: skip
def test_what_sets_the_unit_is_not_learnt(kind: str, frozen: set[str]) -> None:
    _, mask = some_rewards()
    table = tabulate_labels(*KINDS[kind], mask)
    head = SegmentHead(2, levels=table.levels)
    head.start_from([torch.randn(9, 2)], table, mask)
    assert {name for name, p in head.named_parameters() if not p.requires_grad} == frozen | {"scorer.text_weight"}
    spread = np.std([float(label.value) for label in SCORED])
    assert float(head.unit) == pytest.approx(spread if kind in ("scores", "mixed") else 1.0)


@pytest.mark.parametrize(("pooling", "expected"), [("mean", 5.0), ("sum", 2.0)])
def test_scores_start_at_their_mean_and_features_at_their_spread(pooling: Pooling, expected: float) -> None:
    mask = torch.tensor([[True, True, True, False]])
    labels = [SpanLabel(0, 0, 2, 4.0), SpanLabel(0, 0, 4, 6.0)]  # of 2 and 3 positions
    head = SegmentHead(2, hidden=0, pooling=pooling)
    features = torch.tensor([[1.0, 0.0], [3.0, 4.0], [5.0, 8.0]])
    head.start_from(iter([features[:1], features[1:]]), tabulate_labels(labels, [], mask), mask)
    torch.testing.assert_close(head.scorer.mean, torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(head.scorer.std, features.std(0, correction=0))
    assert float(head.unit * head.centre.detach()) == pytest.approx(5.0)
    middle = head.scorer.mean.expand(1, 4, 2)
    torch.testing.assert_close(head(middle, mask).detach(), torch.full((4, 1, 4), expected) * mask)


def test_scores_that_do_not_vary_have_the_unit_1() -> None:
    mask = torch.ones(2, 1, dtype=torch.bool)
    table = tabulate_labels([SpanLabel(0, 0, 1, 2.0)], [SequencePair(0, 1, 1)], mask)
    head = SegmentHead(1)
    head.start_from([torch.randn(2, 1)], table, mask)
    assert float(head.unit) == 1


def test_a_head_rewards_the_positions_that_are_there_alone() -> None:
    head, (_, mask) = some_head("mean"), some_rewards()
    features = torch.randn(4, 6, 2).masked_fill(~mask.unsqueeze(-1), torch.nan)
    rewards = head(features, mask)
    assert rewards.shape == (3, 4, 6) and rewards.isfinite().all() and (rewards[:, ~mask] == 0).all()
    alone = head.scorer(features[3, 2:3], torch.zeros(1)) * head.unit
    torch.testing.assert_close(rewards[:, 3, 2:3], alone)
