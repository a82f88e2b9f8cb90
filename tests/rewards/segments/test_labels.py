"""Labels on spans: what is allowed is tabulated, what is not is refused by name, what belongs together is held out together."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from mmrlhf.rewards.segments.labels import SequencePair, SpanLabel, families, hold_out, tabulate_labels

MASK = torch.tensor([[True, True, True, False], [True, True, True, True], [False, False, False, False]])
RIGHT = [SpanLabel(0, 0, 2, "correct"), SpanLabel(1, 1, 4, "misleading", 2.0)]


def test_tags_scores_and_comparisons_stand_in_the_table() -> None:
    spans = [*RIGHT, SpanLabel(1, 0, 1, "irrelevant"), SpanLabel(0, 1, 4, -2, 0.5)]
    table = tabulate_labels(spans, [SequencePair(1, 0, 0.25, 3.0)], MASK)
    assert table.spans.tolist() == [[0, 0, 2], [1, 1, 4], [1, 0, 1], [0, 1, 4]]
    assert table.ratings.tolist() == [3, 1, 2, 0] and table.levels == 3
    assert table.scores.isnan().tolist() == [True, True, True, False] and table.scores[3] == -2
    assert table.weights.tolist() == [1, 2, 1, 0.5]
    assert (table.pairs.tolist(), table.outcomes.tolist(), table.pair_weights.tolist()) == ([[1, 0]], [0.25], [3.0])
    assert len(table) == 5


def test_without_irrelevant_there_are_two_levels() -> None:
    table = tabulate_labels(RIGHT, [], MASK)
    assert table.ratings.tolist() == [2, 1] and table.levels == 2
    assert table.pairs.shape == (0, 2)


def test_comparisons_alone_are_enough() -> None:
    table = tabulate_labels([], [SequencePair(0, 1, 1)], MASK)
    assert table.spans.shape == (0, 3) and len(table) == 1 and table.levels == 2


def test_a_comparison_goes_with_its_first_row() -> None:
    table = tabulate_labels(RIGHT, [SequencePair(0, 1, 1)], MASK)
    assert len(table.of(torch.tensor([0]))) == 2
    own = table.of(torch.tensor([1]))
    assert own.spans.tolist() == [[1, 1, 4]] and len(own.pairs) == 0 and own.levels == table.levels


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (SpanLabel(-1, 0, 1, "correct"), r"span label 2 \(-1, 0, 1\) is outside: allowed are rows from 0 to 2 and"),
        (SpanLabel(3, 0, 1, "correct"), r"span label 2 \(3, 0, 1\) is outside"),
        (SpanLabel(0, -1, 1, "correct"), "is outside"),
        (SpanLabel(0, 1, 1, "correct"), r"is outside: .* 0 <= start < end <= 4 positions"),
        (SpanLabel(0, 2, 1, "correct"), "is outside"),
        (SpanLabel(0, 2, 5, "correct"), "is outside"),
        (SpanLabel(0, 3, 4, "correct"), r"\(0, 3, 4\) covers padding only: give positions"),
        (SpanLabel(0, 0, 1, "wrong"), "got the tag 'wrong', allowed are correct, misleading, irrelevant, or a score"),
        (SpanLabel(0, 0, 1, math.nan), "got the score nan, allowed is a finite number"),
        (SpanLabel(0, 0, 1, -math.inf), "got the score -inf, allowed is a finite number"),
        (SpanLabel(0, 0, 1, "correct", 0.0), r"\(0, 0, 1\) got the weight 0.0, allowed is a finite number above 0"),
        (SpanLabel(0, 0, 1, "correct", -1.0), "got the weight -1.0"),
        (SpanLabel(0, 0, 1, 1.0, math.nan), "got the weight nan"),
        (SpanLabel(0, 0, 1, 1.0, math.inf), "got the weight inf"),
    ],
)
def test_a_span_label_that_is_not_allowed_is_refused(wrong: SpanLabel, said: str) -> None:
    with pytest.raises(UserError, match=said):
        tabulate_labels([*RIGHT, wrong], [], MASK)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (SequencePair(0, 3, 1), r"comparison 1 \(0, 3\) needs two different rows from 0 to 2 that are not padding alone"),
        (SequencePair(-1, 0, 1), r"\(-1, 0\) needs two different rows"),
        (SequencePair(1, 1, 1), r"\(1, 1\) needs two different rows"),
        (SequencePair(0, 2, 1), r"\(0, 2\) needs two different rows .* not padding alone"),
        (SequencePair(0, 1, 1.5), "got the label 1.5, allowed is 0 to 1: the weight of the first"),
        (SequencePair(0, 1, -0.5), "got the label -0.5"),
        (SequencePair(0, 1, math.nan), "got the label nan"),
        (SequencePair(0, 1, 1, 0.0), r"comparison 1 \(0, 1\) got the weight 0.0, allowed is a finite number above 0"),
    ],
)  # fmt: skip
def test_a_comparison_that_is_not_allowed_is_refused(wrong: SequencePair, said: str) -> None:
    with pytest.raises(UserError, match=said):
        tabulate_labels(RIGHT, [SequencePair(0, 1, 0.5), wrong], MASK)


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ([], "got no label: give spans of another tag or score too, or comparisons"),
        ([SpanLabel(0, 0, 1, "misleading"), SpanLabel(1, 0, 1, "misleading")],
         r"only the label 'misleading': .* mmrlhf.segments.with_rest"),
        ([SpanLabel(0, 0, 1, 2.0), SpanLabel(1, 0, 1, 2)], "only the label 2.0"),
    ],
)  # fmt: skip
def test_labels_that_all_say_the_same_are_refused(spans: list[SpanLabel], said: str) -> None:
    with pytest.raises(UserError, match=said):
        tabulate_labels(spans, [], MASK)
    with pytest.raises(UserError, match="a segment reward got only .*ties: give spans of another tag"):
        tabulate_labels(spans, [SequencePair(0, 1, 0.5)], MASK)
    assert len(tabulate_labels(spans, [SequencePair(0, 1, 0.6)], MASK).pairs) == 1


@st.composite
def labelled(draw: st.DrawFn) -> dict[str, Any]:
    """Labels on some of 1 to 20 rows, comparisons between some, and perhaps groups."""
    count = draw(st.integers(2, 20))
    row = st.integers(0, count - 1)
    spans = [SpanLabel(r, 0, 1, float(i)) for i, r in enumerate(draw(st.lists(row, min_size=2, max_size=20)))]
    joined = draw(st.lists(st.tuples(row, row).filter(lambda two: two[0] != two[1]), max_size=6))
    groups = draw(st.none() | st.lists(st.sampled_from("abcdefghijkl"), min_size=count, max_size=count))
    return {"spans": spans, "pairs": [SequencePair(*two, 1) for two in joined], "count": count, "groups": groups}


def joined_rows(table: Any, count: int, groups: list[str] | None) -> list[set[int]]:
    """The family of each row, by merging sets until nothing changes."""
    sets = [{row} for row in range(count)]
    links = [tuple(pair) for pair in table.pairs.tolist()]
    links += [(i, j) for i in range(count) for j in range(i) if groups is not None and groups[i] == groups[j]]
    for first, second in links:
        merged = sets[first] | sets[second]
        for row in merged:
            sets[row] = merged
    return sets


@given(labelled(), st.floats(0, 0.99), st.integers(0, 5))
def test_what_is_held_out_is_some_whole_families(case: dict[str, Any], fraction: float, seed: int) -> None:
    count, groups = case["count"], case["groups"]
    table = tabulate_labels(case["spans"], case["pairs"], torch.ones(count, 1, dtype=torch.bool))
    held_out = hold_out(table, count, groups, fraction, seed)
    sets = joined_rows(table, count, groups)
    assert all(held_out[list(family)].unique().numel() == 1 for family in sets)
    rows = {*table.spans[:, 0].tolist(), *table.pairs.flatten().tolist()}
    known = {min(sets[row]) for row in rows}
    chosen = {min(sets[row]) for row in held_out.nonzero().flatten().tolist()}
    assert chosen <= known
    if fraction == 0 or len(known) < 5:
        assert not chosen
    else:
        assert len(chosen) == min(max(1, round(fraction * len(known))), len(known) - 1)
    assert torch.equal(held_out, hold_out(table, count, groups, fraction, seed))


def test_a_share_is_held_out_by_chance_and_below_five_families_none() -> None:
    mask = torch.ones(100, 1, dtype=torch.bool)
    table = tabulate_labels([SpanLabel(i, 0, 1, float(i)) for i in range(100)], [], mask)
    first, second = (hold_out(table, 100, None, 0.1, seed) for seed in (0, 1))
    assert first.sum() == second.sum() == 10 and not torch.equal(first, second)
    assert not hold_out(table, 100, [i % 4 for i in range(100)], 0.5, 0).any()
    assert hold_out(table, 100, [i % 5 for i in range(100)], 0.5, 0).sum() == 40


def test_groups_that_are_not_one_a_sequence_are_refused() -> None:
    with pytest.raises(UserError, match="got 2 groups for 3 sequences: give one a sequence"):
        families(tabulate_labels(RIGHT, [], MASK), 3, ["a", "b"])
