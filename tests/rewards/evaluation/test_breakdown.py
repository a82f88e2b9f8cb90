"""Groups of pairs by annotator, criterion, prompt and difficulty."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.data import Pair
from mmrlhf.rewards.evaluation.breakdown import (
    agreement_of_groups,
    breakdowns,
    by_difficulty,
    by_prompt,
    divided,
    thirds,
    unanimity,
    votes_of,
)


def pair(prompt: str = "p", first: str = "a", second: str = "b", label: float = 1.0, **fields: Any) -> Pair:
    return Pair(prompt, Path(first), Path(second), label, **fields)


def test_agreement_of_each_group_by_hand() -> None:
    division = divided("annotator", ["ann", "bob", "ann", "ann"])
    assert division is not None
    rows = agreement_of_groups(np.array([1.0, 0.5, 0.0, 0.5]), division, ["p", "p", "q", "q"], 0)
    assert [(row["name"], row["n"], row["prompts"], row["agreement"], row["ci95"]) for row in rows] == [
        ("ann", 3, 2, 0.5, None), ("bob", 1, 1, 0.5, None),
    ]  # fmt: skip
    assert divided("annotator", ["ann", "ann"]) is None


def test_the_parts_make_up_the_whole() -> None:
    generator = np.random.default_rng(0)
    pairs = [
        pair(
            f"{'word ' * (i % 7)}{i % 20}",
            annotator=f"rater {i % 3}",
            criterion="" if i % 4 else "style",
            second=f"{i}",
        )
        for i in range(120)
    ]
    credits, margins = generator.choice([0, 0.5, 1], 120), generator.normal(size=120)
    found = breakdowns(pairs, margins, credits, seed=0)
    assert [part["by"] for part in found] == ["annotator", "criterion", "words of the prompt", "the reward's |margin|"]
    for part in found:
        sizes = np.array([group["n"] for group in part["groups"]])
        assert sizes.sum() == 120
        assert sizes @ [group["agreement"] for group in part["groups"]] / 120 == pytest.approx(credits.mean())
        for group in part["groups"]:
            assert group["ci95"][0] <= group["agreement"] <= group["ci95"][1]


def test_few_groups_are_kinds_of_prompts_and_many_are_not() -> None:
    few = [pair(f"prompt {i}", group="anime" if i % 3 else "photo") for i in range(9)]
    division = by_prompt(few)
    assert division is not None and division.by == "group" and division.order == ["anime", "photo"]
    # the prompts of a group vary within it, though the group is one unit of the whole
    found = breakdowns(few, np.ones(9), np.ones(9), seed=0)
    assert found[0]["groups"][0]["prompts"] == 6
    many = by_prompt([pair("word " * (1 + i), group=f"session {i}") for i in range(20)])
    assert many is not None and many.by == "words of the prompt"
    assert by_prompt([pair("one"), pair("two")]) is None


def test_votes_on_the_same_pair_in_either_order() -> None:
    pairs = [
        pair(annotator="ann", label=1.0),
        pair(annotator="bob", first="b", second="a", label=0.0),
        pair(annotator="cid", label=0.0),
        pair(annotator="ann", label=0.5),  # ann's last word on it
        pair(prompt="q", annotator="ann"),
        pair(annotator="ann", criterion="safety"),
        pair(prompt="r"),
        pair(prompt="r"),  # without names, each row is a vote
    ]
    assert sorted(votes_of(pairs).values()) == [[3, 1, 2], [4], [5], [6, 7]]
    division = by_difficulty(pairs, np.zeros(8))
    assert division is not None
    assert division.names == [*["split"] * 4, "one vote", "one vote", "unanimous", "unanimous"]
    assert division.order == ["unanimous", "split", "one vote"]


def test_unanimity() -> None:
    assert unanimity([1.0]) == "one vote"
    assert unanimity([1.0, 0.8, 0.6]) == "unanimous"
    assert unanimity([0.5, 0.5]) == "unanimous"
    assert unanimity([1.0, 1.0, 0.0]) == "majority"
    assert unanimity([1.0, 0.0]) == "split"
    assert unanimity([1.0, 1.0, 0.0, 0.0, 0.5]) == "split"


def test_difficulty_of_soft_labels_and_of_single_strict_ones() -> None:
    soft = by_difficulty([pair(second=f"{i}", label=i / 8) for i in range(9)], np.zeros(9))
    assert soft is not None and soft.by == "the annotators' |2 label − 1|"
    assert soft.names[4].startswith("low: 0 to") and soft.names[0] == soft.names[8] == "high: 1"
    hard = [pair(second=f"{i}") for i in range(9)]
    margins = by_difficulty(hard, np.arange(-4.0, 5.0))
    assert margins is not None and margins.by == "the reward's |margin|"
    assert by_difficulty(hard, np.zeros(9)) is None


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_thirds_keep_equal_values_together_and_in_order(values: list[int]) -> None:
    division = thirds("x", np.array(values, dtype=float))
    assert (division is None) == (len(set(values)) == 1)
    if division is not None:
        places = [division.order.index(name) for name in division.names]
        assert set(places) == set(range(len(division.order)))
        for a, b in zip(values, places, strict=True):
            assert all(place <= b for value, place in zip(values, places, strict=True) if value <= a)


def test_thirds_are_thirds() -> None:
    division = thirds("x", np.arange(99.0))
    assert division is not None and [division.names.count(name) for name in division.order] == [33, 33, 33]
    assert division.order == ["low: 0 to 32", "middle: 33 to 65", "high: 66 to 98"]
