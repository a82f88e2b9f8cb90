"""A segment reward keeps to what is asked of rewards, and comes back from its folder as it went in."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmrlhf.errors import UserError
from mmrlhf.rewards.segments.head import Pooling, SegmentHead
from mmrlhf.rewards.segments.reward import HEAD, SETTINGS, SegmentReward

FEATURES = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(1))
MASK = torch.arange(7) < torch.tensor([7, 4, 1, 6, 2]).unsqueeze(1)
SPANS = [(0, 0, 3), (1, 2, 7), (4, 0, 1)]


def some_reward(levels: int = 3, pooling: Pooling = "mean", hidden: int = 8) -> SegmentReward:
    """A fresh head with nothing left at what it starts at."""
    generator = torch.Generator().manual_seed(0)
    head = SegmentHead(3, members=3, hidden=hidden, levels=levels, pooling=pooling, generator=generator)
    with torch.no_grad():
        for value in (head.log_tag_scale, head.log_pair_scale, head.centre, *head.scorer.parameters()):
            value.add_(0.2 * torch.randn(value.shape, generator=generator))
        head.scorer.mean.fill_(0.3)
        head.scorer.std.fill_(1.4)
        head.unit.fill_(2.5)
    return SegmentReward(head)


def test_a_row_is_rewarded_alike_alone_and_among_others() -> None:
    reward = some_reward()
    together = reward(FEATURES, MASK)
    assert together.shape == (5, 7) and together.std() > 0.1
    for i in range(5):
        length = int(MASK[i].sum())
        alone = reward(FEATURES[i : i + 1, :length])
        torch.testing.assert_close(alone[0], together[i, :length], rtol=0, atol=1e-5)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(reward(FEATURES[order], MASK[order]), together[order], rtol=0, atol=1e-5)


def test_masked_positions_have_no_reward_and_no_influence() -> None:
    reward = some_reward()
    dirty = FEATURES.masked_fill(~MASK.unsqueeze(-1), torch.nan)
    assert torch.equal(reward(dirty, MASK), reward(FEATURES, MASK))
    assert (reward(FEATURES, MASK)[~MASK] == 0).all()
    assert reward(FEATURES, torch.zeros_like(MASK)).tolist() == torch.zeros(5, 7).tolist()


def test_nan_features_give_nan_at_their_position_alone() -> None:
    features = FEATURES.clone()
    features[0, 2, 1] = torch.nan
    found = some_reward()(features, MASK).isnan()
    assert found[0, 2] and found.sum() == 1


def test_gradients_flow_to_the_features_that_are_there_and_not_to_the_weights() -> None:
    reward, features = some_reward(), FEATURES.clone().requires_grad_()
    assert reward.differentiable
    reward(features, MASK).sum().backward()
    assert features.grad is not None
    moved = features.grad.abs().sum(-1) > 0
    assert torch.equal(moved, MASK)
    assert all(p.grad is None and not p.requires_grad for p in reward.head.parameters())
    step = 1e-2 * features.grad
    assert reward(FEATURES + step, MASK).sum() > reward(FEATURES, MASK).sum()


@pytest.mark.parametrize("pooling", ["mean", "sum"])
@pytest.mark.parametrize("masked", [True, False])
def test_a_span_is_worth_its_positions(pooling: Pooling, masked: bool) -> None:
    reward, mask = some_reward(pooling=pooling), MASK if masked else None
    each, there = reward(FEATURES, mask), MASK if masked else torch.ones_like(MASK)
    expected = []
    for row, start, end in SPANS:
        values = each[row, start:end][there[row, start:end]]
        expected.append(values.sum() if pooling == "sum" else values.mean())
    found = reward.segment_rewards(FEATURES, SPANS, mask)
    torch.testing.assert_close(found, torch.stack(expected))
    assert torch.equal(found, reward.segment_rewards(FEATURES, torch.tensor(SPANS), mask))
    members = reward.segment_members(FEATURES, SPANS, mask)
    assert members.shape == (3, 3) and (members.std(0) > 0).all()
    torch.testing.assert_close(members.mean(0), found)


def test_of_no_spans_there_are_no_rewards() -> None:
    assert some_reward().segment_rewards(FEATURES, [], MASK).shape == (0,)


@pytest.mark.parametrize(
    "span", [(-1, 0, 1), (5, 0, 1), (0, -1, 1), (0, 2, 2), (0, 3, 2), (0, 0, 8)]
)  # fmt: skip
def test_spans_outside_are_refused(span: tuple[int, int, int]) -> None:
    said = rf"spans got \({span[0]}, {span[1]}, {span[2]}\), allowed are \(row, start, end\) with rows from 0 to 4 and .* <= 7"
    with pytest.raises(UserError, match=said):
        some_reward().segment_rewards(FEATURES, [(0, 0, 1), span], MASK)


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(UserError, match="features got a width of 4, allowed is 3, what this reward learnt from"):
        some_reward()(torch.zeros(1, 2, 4))


def test_probabilities_of_tags_sum_to_1_and_follow_the_reward() -> None:
    reward = some_reward()
    spans = [(0, i, i + 1) for i in range(7)]
    found = reward.tag_probabilities(FEATURES, spans, MASK)
    assert found.shape == (7, 3) and (found > 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(7))
    single = SegmentReward(SegmentHead(3, members=1, generator=torch.Generator().manual_seed(0)))
    order = single.segment_rewards(FEATURES, spans, MASK).argsort()
    probabilities = single.tag_probabilities(FEATURES, spans, MASK)[order]
    assert (probabilities[:, 2].diff() > 0).all() and (probabilities[:, 0].diff() < 0).all()


def test_probabilities_are_those_of_proportional_odds() -> None:
    reward = some_reward()
    head = reward.head
    values = reward.segment_members(FEATURES, SPANS, MASK).numpy() / float(head.unit)
    low, high = head.scorer.thresholds.tolist()
    expected = []
    for i in range(3):
        logits = [math.exp(float(head.log_tag_scale)) * (float(v) - float(head.centre)) for v in values[:, i]]
        passes = [[1 / (1 + math.exp(cut - logit)) for logit in logits] for cut in (low, high)]
        over_low, over_high = sum(passes[0]) / 3, sum(passes[1]) / 3
        expected.append([1 - over_low, over_low - over_high, over_high])
    torch.testing.assert_close(reward.tag_probabilities(FEATURES, SPANS, MASK), torch.tensor(expected))


def test_what_was_never_called_irrelevant_is_not() -> None:
    found = some_reward(levels=2).tag_probabilities(FEATURES, SPANS, MASK)
    assert (found[:, 1] == 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(3))


@pytest.mark.parametrize(("levels", "pooling", "hidden"), [(3, "mean", 8), (2, "sum", 0)])
def test_a_saved_reward_is_loaded_bitwise_equal(tmp_path: Path, levels: int, pooling: Pooling, hidden: int) -> None:
    reward = some_reward(levels, pooling, hidden)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "notes.txt").write_text("mine")
    reward.save(tmp_path / "new")
    reward.save(tmp_path / "new")  # over itself
    assert sorted(f.name for f in (tmp_path / "new").iterdir()) == ["notes.txt", SETTINGS, HEAD]
    for other in (SegmentReward.load(tmp_path / "new"), pickle.loads(pickle.dumps(reward)), reward.to("cpu")):
        assert torch.equal(other(FEATURES, MASK), reward(FEATURES, MASK))
        assert torch.equal(other.segment_rewards(FEATURES, SPANS), reward.segment_rewards(FEATURES, SPANS))
        assert torch.equal(other.tag_probabilities(FEATURES, SPANS), reward.tag_probabilities(FEATURES, SPANS))


def test_a_folder_is_made_and_a_file_in_its_place_refused(tmp_path: Path) -> None:
    some_reward().save(tmp_path / "deep" / "new")
    assert SegmentReward.load(str(tmp_path / "deep" / "new")).features == 3
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file: give a folder to save the segment reward to"):
        some_reward().save(tmp_path / "file")


def edited(folder: Path, **changes: Any) -> None:
    """segment.json with other values, those of its head by their names with `head_` before them."""
    settings = json.loads((folder / SETTINGS).read_text())
    for name, value in changes.items():
        if name.startswith("head_"):
            settings["head"][name.removeprefix("head_")] = value
        else:
            settings[name] = value
    (folder / SETTINGS).write_text(json.dumps(settings))


def not_finite(folder: Path) -> None:
    state = load_file(folder / HEAD)
    save_file(state | {"centre": torch.tensor(torch.nan)}, folder / HEAD)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / SETTINGS).unlink(), r"no segment reward in .* \(segment.json is missing\): give a folder"),
        (lambda f: (f / HEAD).unlink(), "the segment reward in .* is broken .*: train it again or restore its files"),
        (lambda f: cut(f / HEAD), "is broken"),
        (lambda f: cut(f / SETTINGS), "is broken"),
        (lambda f: (f / SETTINGS).write_bytes(b"\xff"), "is broken"),
        (lambda f: (f / SETTINGS).write_text("[]"), "is broken"),
        (lambda f: edited(f, head={}), "is broken"),
        (lambda f: edited(f, head_features=4), "is broken"),
        (lambda f: edited(f, head_levels=2), "is broken"),
        (lambda f: edited(f, head_pooling="max"), r"is broken \(pooling is 'max'\)"),
        (not_finite, r"is broken \(segment.safetensors holds values that are not finite\)"),
        (lambda f: edited(f, format=2), "has format 2 of kind segment, allowed is format 1 of kind segment: train the"),
        (lambda f: edited(f, kind="head"), "has format 1 of kind head, allowed"),
    ],
)
def test_a_broken_folder_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    some_reward().save(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=said) as caught:
        SegmentReward.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_save_that_is_cut_off_leaves_no_folder_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_reward().save(tmp_path)

    def fails(*_: Any) -> bytes:
        raise OSError("disk full")

    monkeypatch.setattr("mmrlhf.rewards.segments.reward.write_text", fails)
    with pytest.raises(OSError, match="disk full"):
        some_reward(levels=2).save(tmp_path)
    with pytest.raises(UserError, match="no segment reward"):
        SegmentReward.load(tmp_path)
