"""Pairs worth asking about: candidates, caps, what uncertainty and distance do, and determinism."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from selection.pairs import candidate_pairs, choose_pairs
from tests.selection.data import seeded


def test_candidates_are_all_pairs_of_a_prompt_in_order() -> None:
    pairs = candidate_pairs(torch.tensor([7, 2, 7, 2, 7, 5]))
    assert pairs.tolist() == [[0, 2], [0, 4], [1, 3], [2, 4]]
    assert candidate_pairs(torch.tensor([1, 2, 3])).shape == (0, 2)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(1, 40),
    prompts=st.integers(1, 6),
    cap=st.integers(1, 8),
    scored=st.booleans(),
    copies=st.booleans(),
    data=st.data(),
)
def test_properties(
    seed: int, count: int, prompts: int, cap: int, scored: bool, copies: bool, data: st.DataObject
) -> None:
    generator = seeded(seed)
    z = torch.zeros(count, 3) if copies else torch.randn(count, 3, generator=generator)
    prompt_ids = torch.randint(prompts, (count,), generator=generator)
    scores = torch.rand(count, generator=generator) if scored else None
    available = sum(min(cap, number) for number in Counter(prompt_ids.tolist()).values())
    budget = data.draw(st.integers(1, available))
    first, again = (
        choose_pairs(z, scores, budget, per_prompt_cap=cap, prompt_ids=prompt_ids, generator=seeded(seed)) for _ in "ab"
    )
    assert first == again
    assert len(set(first.indices)) == budget == len(first.why) == len(first.gains)
    assert max(Counter(prompt_ids[first.indices].tolist()).values()) <= cap


def choose(z: torch.Tensor, scores: torch.Tensor | None, budget: int, **options: Any) -> list[int]:
    """Pair numbers, without a cap on prompts."""
    prompt_ids = torch.zeros(len(z), dtype=torch.long)
    return choose_pairs(
        z, scores, budget, per_prompt_cap=len(z), prompt_ids=prompt_ids, generator=seeded(), **options
    ).indices


def test_without_scores_it_is_k_center_that_starts_from_no_difference() -> None:
    z = torch.randn(60, 4, generator=seeded(5))
    near, expected = z.norm(dim=1), []
    for _ in range(15):
        expected.append(int(near.argmax()))
        pick = z[expected[-1]]
        near = torch.minimum(near, torch.minimum((z - pick).norm(dim=1), (z + pick).norm(dim=1)))
    assert choose(z, None, 15) == expected


def test_a_pair_and_its_swap_are_the_same_question() -> None:
    z = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0]])
    assert set(choose(z, None, 2)) in ({0, 2}, {1, 2})


def test_equal_differences_go_to_the_more_uncertain_and_equal_uncertainties_to_the_farther() -> None:
    z = torch.eye(6)
    scores = torch.tensor([0.1, 0.2, 0.6, 0.5, 0.4, 0.3])
    assert choose(z, scores, 3) == [2, 3, 4]
    assert choose(torch.diag(torch.arange(1.0, 7.0)), torch.full((6,), 0.3), 3, top_share=1.0) == [5, 4, 3]


def test_no_diversity_is_the_order_of_uncertainty() -> None:
    scores = torch.rand(30, generator=seeded(2))
    picks = choose(torch.randn(30, 3, generator=seeded(1)), scores, 10, diversity=0.0)
    assert picks == scores.argsort(descending=True)[:10].tolist()


def test_diversity_does_not_ask_the_same_again() -> None:
    z = torch.tensor([[1.0, 0.0]] * 10 + [[0.0, 1.0]])
    scores = torch.tensor([0.6] * 10 + [0.5])
    assert choose(z, scores, 2, top_share=1.0)[1] == 10
    assert 10 not in choose(z, scores, 2, diversity=0.0)


def test_what_is_certain_comes_only_when_the_caps_exhaust_the_rest() -> None:
    z = torch.randn(8, 2, generator=seeded())
    z[4:] *= 100
    scores = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.1, 0.1, 0.1, 0.1])
    prompt_ids = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    choice = choose_pairs(z, scores, 4, per_prompt_cap=2, prompt_ids=prompt_ids, generator=seeded())
    assert [index < 4 for index in choice.indices] == [True, True, False, False]


def test_the_reasons_name_what_counted() -> None:
    z, prompt_ids = torch.eye(4), torch.zeros(4, dtype=torch.long)
    without = choose_pairs(z, None, 1, per_prompt_cap=4, prompt_ids=prompt_ids, generator=seeded())
    scored = choose_pairs(z, torch.arange(4.0), 1, per_prompt_cap=4, prompt_ids=prompt_ids, generator=seeded())
    assert without.why[0].startswith("diverse: differs by 1 ")
    assert scored.why[0].startswith("uncertain: 3 (number 1 of 4), and differs by 1 ")
    assert scored.gains == [3.0]


def test_what_cannot_be_done_is_told() -> None:
    z, prompt_ids = torch.eye(4), torch.tensor([0, 0, 0, 1])
    with pytest.raises(UserError, match="got budget 4, allowed is 1 to 3: 4 pairs, at most 2 a prompt"):
        choose_pairs(z, None, 4, per_prompt_cap=2, prompt_ids=prompt_ids, generator=seeded())
    with pytest.raises(UserError, match="uncertainties hold NaN"):
        choose_pairs(z, torch.full((4,), torch.nan), 1, per_prompt_cap=2, prompt_ids=prompt_ids, generator=seeded())
    with pytest.raises(UserError, match="pair embeddings hold NaN"):
        choose_pairs(z / 0, None, 1, per_prompt_cap=2, prompt_ids=prompt_ids, generator=seeded())


def test_pairs_asked_earlier_are_kept_away_from() -> None:
    z = torch.randn(60, 4, generator=seeded(5))
    whole = choose(z, None, 12)
    rest = torch.tensor([index for index in range(60) if index not in whole[:5]])
    again = choose(z[rest], None, 7, asked=z[whole[:5]])
    assert rest[again].tolist() == whole[5:]
