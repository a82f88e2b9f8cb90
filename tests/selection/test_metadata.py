"""Metadata: conditions written and met, chances of weights, and shares kept as well as whole rows allow."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from selection.choice import Choice
from selection.metadata import Condition, balanced_choice, keep, parse_condition, weighted_choice
from tests.selection.data import gaussian, seeded
from tests.selection.invariants import Request, check_choice, check_refusals, requests


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("sharpness >= 0.5", Condition("sharpness", ">=", 0.5)),
        ("width<512", Condition("width", "<", 512)),
        ("source == web crawl", Condition("source", "==", "web crawl")),
        ('source != "2024"', Condition("source", "!=", "2024")),
        ("nude == false", Condition("nude", "==", False)),
        ("a b > -1e3", Condition("a b", ">", -1000.0)),
    ],
)
def test_conditions_are_read(text: str, condition: Condition) -> None:
    assert parse_condition(text) == condition
    assert type(parse_condition(text).value) is type(condition.value)


@pytest.mark.parametrize("text", ["", "score", "score =", "score = 3", "> 3", "score >", "a => 3", "a >< 3"])
def test_what_is_no_condition_is_told(text: str) -> None:
    with pytest.raises(UserError, match="cannot read the condition .* one of == != <= >= < >, and a value"):
        parse_condition(text)


@pytest.mark.parametrize("text", ["a == null", "a == [1]", "a == NaN"])
def test_values_that_nothing_equals_are_told(text: str) -> None:
    with pytest.raises(UserError, match="allowed is a number, a text, true or false"):
        parse_condition(text)


def test_rows_that_meet_every_condition_are_kept() -> None:
    columns = {"score": np.array([0.1, 0.5, 0.9, np.nan, 0.7]).tolist(), "source": ["a", "b", "a", "a", None]}
    conditions = [parse_condition(text) for text in ("score >= 0.5", "source != b")]
    assert keep(columns, conditions[:1]).tolist() == [1, 2, 4]
    assert keep(columns, conditions[1:]).tolist() == [0, 2, 3]  # a missing value meets nothing
    assert keep(columns, conditions).tolist() == [2]
    assert keep(columns, []).tolist() == [0, 1, 2, 3, 4]


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.integers(-2, 2), min_size=1), value=st.integers(-2, 2))
def test_a_relation_and_its_opposite_part_the_rows(values: list[int], value: int) -> None:
    for relation, opposite in (("==", "!="), ("<", ">="), (">", "<=")):
        one, other = (keep({"x": values}, [Condition("x", each, value)]).tolist() for each in (relation, opposite))
        assert sorted(one + other) == list(range(len(values)))


def test_conditions_that_cannot_be_met_or_not_met_are_told() -> None:
    with pytest.raises(UserError, match="there is no column 'size': allowed are score"):
        keep({"score": [1]}, [Condition("size", "<", 2)])
    with pytest.raises(UserError, match="column 'score' of row 1 is 'high', which has no order with 2"):
        keep({"score": [1, "high"]}, [Condition("score", "<", 2)])
    with pytest.raises(UserError, match="columns have lengths"):
        keep({"a": [1], "b": [1, 2]}, [])
    with pytest.raises(UserError, match="columns have lengths {}, allowed is at least one"):
        keep({}, [])


def test_weighted_draws_have_the_chances_of_drawing_one_after_another() -> None:
    weights = np.array([1.0, 2.0, 0.0, 3.0])
    counts, generator = np.zeros((4, 4)), seeded()
    for _ in range(3000):
        counts[tuple(weighted_choice(gaussian(4, 1), 2, generator=generator, weights=weights).indices)] += 1
    expected = np.zeros((4, 4))
    for first in (0, 1, 3):
        for second in {0, 1, 3} - {first}:
            expected[first, second] = weights[first] / 6 * weights[second] / (6 - weights[first])
    assert (counts[expected == 0] == 0).all()
    error = (counts - 3000 * expected)[expected > 0] / np.sqrt(3000 * expected[expected > 0])
    assert np.abs(error).max() < 4.5


@settings(max_examples=60, deadline=None)
@given(request=requests())
def test_weighted_properties(request: Request) -> None:
    weights = np.random.default_rng(request.seed).random(len(request.x)) + 0.1
    choice = check_choice(partial(weighted_choice, weights=weights), request)
    assert (choice.gains == weights[choice.indices]).all()


def test_weights_that_allow_too_little_are_told() -> None:
    check_refusals(partial(weighted_choice, weights=np.ones(10)), reads_values=False)
    weights = np.array([0.0, 1.0, 1.0, 0.0])
    with pytest.raises(UserError, match="got budget 2, allowed is 1 to 1: no more new rows have a weight above 0"):
        weighted_choice(gaussian(4, 1), 2, already=[1], generator=seeded(), weights=weights)
    with pytest.raises(UserError, match="weights of row 0 is -1, allowed is 0 or more"):
        weighted_choice(gaussian(1, 1), 1, generator=seeded(), weights=np.array([-1.0]))


GROUPS = ["a"] * 10 + ["b"] * 10 + ["c"] * 2


def balance(budget: int, shares: dict[str, float], already: tuple[int, ...] = (), **options: np.ndarray) -> Choice:
    """Of the 22 rows in `GROUPS`."""
    return balanced_choice(
        gaussian(22, 1), budget, already=already, generator=seeded(), groups=GROUPS, shares=shares, **options
    )


def counts(choice: Choice) -> dict[str, int]:
    """How many of each group."""
    return dict(Counter(GROUPS[index] for index in choice.indices))


def test_groups_get_their_shares() -> None:
    assert counts(balance(10, {"a": 0.5, "b": 0.3, "c": 0.2})) == {"a": 5, "b": 3, "c": 2}
    assert counts(balance(8, {"a": 0.75, "b": 0.25})) == {"a": 6, "b": 2}


def test_rows_chosen_already_count_towards_the_shares() -> None:
    choice = balance(6, {"a": 0.5, "b": 0.5}, already=(0, 1, 2, 3))
    assert counts(choice) == {"a": 1, "b": 5}
    assert choice.gains.tolist() == pytest.approx(
        [2.5, 2, 1.5, 1, 0.5, 1]
    )  # the first: half of 5 rows, and there is none
    assert counts(balance(4, {"a": 0.5, "b": 0.5}, already=(20, 21))) == {"a": 2, "b": 2}  # of a group without a share


def test_an_exhausted_group_leaves_its_places_to_the_others() -> None:
    assert counts(balance(12, {"a": 0.25, "b": 0.25, "c": 0.5})) == {"a": 5, "b": 5, "c": 2}


def test_within_a_group_the_worthiest_come_first_and_the_gain_is_what_was_missing() -> None:
    choice = balance(3, {"a": 0.5, "b": 0.5}, worth=np.arange(22.0))
    assert choice.indices.tolist() == [9, 19, 8]
    assert choice.gains.tolist() == pytest.approx([0.5, 1.0, 0.5])
    assert choice.why == ["a: 1 of 1, wanted 50.0%", "b: 1 of 2, wanted 50.0%", "a: 2 of 3, wanted 50.0%"]
    assert balance(3, {"a": 1.0}, worth=np.ones(22)).indices.tolist() == [0, 1, 2]


@settings(max_examples=80, deadline=None)
@given(request=requests(), parts=st.lists(st.integers(1, 5), min_size=3, max_size=3))
def test_no_group_runs_more_than_one_row_ahead_of_its_share(request: Request, parts: list[int]) -> None:
    groups = [index % 3 for index in range(len(request.x))]
    shares = {group: parts[group] / sum(parts[: max(groups) + 1]) for group in range(max(groups) + 1)}
    choice = check_choice(partial(balanced_choice, groups=groups, shares=shares), request)
    if request.already:
        return
    left = Counter(groups)
    got: Counter[int] = Counter()
    for number, index in enumerate(choice.indices, start=1):
        got[groups[index]] += 1
        left[groups[index]] -= 1
        if min(left.values()) > 0:  # no group was exhausted so far
            assert all(got[group] < share * number + 1 for group, share in shares.items())


def test_shares_that_cannot_be_kept_are_told() -> None:
    shares = {group: 0.1 for group in range(10)}
    check_refusals(partial(balanced_choice, groups=list(range(10)), shares=shares), reads_values=False)
    with pytest.raises(UserError, match="the shares sum to 0.9, allowed is 1"):
        balance(2, {"a": 0.5, "b": 0.4})
    with pytest.raises(UserError, match="there is no row of group 'd': allowed are a, b, c"):
        balance(2, {"a": 0.5, "d": 0.5})
    with pytest.raises(UserError, match="the share of group 'b' is -0.5"):
        balance(2, {"a": 1.5 - 0.5, "b": -0.5})
    with pytest.raises(UserError, match="got budget 3, allowed is 1 to 2: no more new rows are in groups with a share"):
        balance(3, {"c": 1.0, "a": 0.0})
    with pytest.raises(UserError, match="got 2 groups for 3 rows"):
        balanced_choice(gaussian(3, 1), 1, generator=seeded(), groups=["a", "b"], shares={"a": 1.0})
