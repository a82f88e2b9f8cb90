"""Combining by rank: by hand, against scipy, and what must not change it."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from mmrlhf.errors import UserError
from mmrlhf.rewards.rules.rank import RankCombination, mid_ranks, rank_combine, rank_within
from mmrlhf.rewards.rules.simple import Brightness, Redness

NAN = torch.nan
VALUES = st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=8)


def test_by_hand() -> None:
    scores = torch.tensor([[1.0, 5.0, 5.0, 9.0], [3.0, 2.0, 1.0, 0.0]])
    first, second = torch.tensor([0, 0.5, 0.5, 1]), torch.tensor([1, 2 / 3, 1 / 3, 0])
    torch.testing.assert_close(rank_combine(scores, [1.0, 0.0]), first)
    torch.testing.assert_close(rank_combine(scores, [3.0, 1.0]), 0.75 * first + 0.25 * second)


def test_who_abstains_takes_no_rank() -> None:
    scores = torch.tensor([[1.0, NAN, 2.0, 3.0], [0.0, 9.0, NAN, 1.0]])
    torch.testing.assert_close(rank_combine(scores, [1.0, 1.0]), torch.tensor([0, NAN, NAN, 1]), equal_nan=True)
    torch.testing.assert_close(rank_combine(scores, [1.0, 0.0]), torch.tensor([0, NAN, 0.5, 1]), equal_nan=True)
    assert rank_combine(torch.full((1, 2), NAN), [1.0]).isnan().all()
    torch.testing.assert_close(rank_combine(scores[:, :2], [1.0, 1.0]), torch.tensor([0.5, NAN]), equal_nan=True)


@given(VALUES)
def test_ranks_are_those_of_scipy(values: list[float]) -> None:
    expected = (rankdata(values) - 1) / (len(values) - 1)
    assert mid_ranks(torch.tensor(values)).tolist() == pytest.approx(expected.tolist())


@given(VALUES, st.randoms())
def test_it_knows_no_scale_and_no_order(values: list[float], random) -> None:
    scores = torch.tensor([values, [-3 * value for value in reversed(values)]])
    combined = rank_combine(scores, [1.0, 2.0])
    torch.testing.assert_close(rank_combine(torch.stack([scores[0].exp(), scores[1] * 100]), [10.0, 20.0]), combined)
    order = random.sample(range(len(values)), len(values))
    torch.testing.assert_close(rank_combine(scores[:, order], [1.0, 2.0]), combined[order])


def test_prompts_are_ranked_apart_and_images_scored() -> None:
    scores = torch.tensor([[1.0, 2.0, 30.0, 10.0, 20.0]])
    assert rank_within(scores, ["a", "a", "b", "b", "b"], [1.0]).tolist() == [0, 1, 1, 0, 0.5]
    images = torch.tensor([[0.9, 0.0, 0.0], [0.9, 0.9, 0.9], [0.1, 0.1, 0.1]]).view(3, 3, 1, 1).expand(3, 3, 2, 2)
    combination = RankCombination((Brightness(), Redness()), (1.0, 3.0))
    # brightness: middle, first, last; redness: first, and a tie
    expected = torch.tensor([0.5 / 4 + 3 / 4, 1 / 4 + 0.75 / 4, 0.75 / 4]).double()
    torch.testing.assert_close(combination(images, ["p"] * 3), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(combination))(images, ["p"] * 3), expected)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("inf")]])
def test_bad_weights(weights: list[float]) -> None:
    with pytest.raises(UserError, match="for 2 rewards, allowed is a number each, 0 or more, not all 0"):
        rank_combine(torch.zeros(2, 3), weights)


def test_bad_prompts() -> None:
    with pytest.raises(UserError, match="got 1 prompts for 3 scores"):
        rank_within(torch.zeros(2, 3), ["a"], [1.0, 1.0])
