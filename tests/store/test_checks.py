"""Check questions and repeats in both databases: what they say of raters, and that they say nothing of items."""

import json
from dataclasses import replace
from typing import Any

import pytest

from mmrlhf.errors import UserError
from mmrlhf.store import Judgement, LikertJudgement, Preference, RankJudgement, Store, Task, Veto
from mmrlhf.store.checks import Check, Seen, add_checks, check_results, flagged, passes, release, repeat_results, seen
from mmrlhf.store.records import repeat_key

PAIR = Task("p", ("a", "b"))
GOLD = Task("gold", ("a", "b"))
SIDE = Task("left, please", ("a", "b"))
TIE = Task("the same?", ("a", "b"))
SCORE = Task("p", ("a",), "score")
LEVELS = Task("p", ("a",), "likert", criteria=("quality", "fit"))
ORDER = Task("p", ("a", "b", "c"), "rank")
CHECKS = [
    Check(GOLD, {"item": "b"}),
    Check(SIDE, {"side": "left"}),
    Check(TIE, {"tie": True}),
    Check(SCORE, {"score": 4, "tolerance": 1}),
    Check(LEVELS, {"scores": {"quality": 5, "fit": 1}}),
    Check(ORDER, {"ranks": {"a": 1, "b": 2, "c": 2}, "tolerance": 1}),
]


def said(
    prompt: str, label: float, annotator: str = "ada", shown: tuple[str, str] = ("a", "b"), **more: Any
) -> Preference:
    return Preference(prompt, ("a", "b"), label, annotator, "human", shown, **more)


def test_answers_to_checks_are_about_the_rater_alone(store: Store) -> None:
    store.add_tasks([PAIR])
    add_checks(store, CHECKS)
    who: dict[str, Any] = {"annotator": "ada", "source": "human", "unsafe": ("a",)}
    store.add_many([replace(said("gold", 0.0), unsafe=("a",)), said("p", 1.0)])
    store.add_judgement(Judgement("p", "a", 3.0, **who))
    store.add_likert(LikertJudgement(prompt="p", item="a", scores={"quality": 5, "fit": 2}, **who))
    store.add_ranking(RankJudgement(prompt="p", items=("c", "b", "a"), ranks=(3, 2, 1), shown=("a", "b", "c"), **who))
    assert (
        [p.prompt for p in store.preferences()]
        == ["p"]
        == [p.prompt for p in store.preferences(include_superseded=True)]
    )
    assert store.judgements() == [] and store.likert() == [] and store.rankings() == [] and store.vetoes() == []
    assert store.count() == 1 and store.count("score") == 0
    assert len(store.preferences(include_checks=True)) == 2 == store.count(include_checks=True)
    assert [len(of(include_checks=True)) for of in (store.judgements, store.likert, store.rankings)] == [1, 1, 1]
    assert store.vetoes(include_checks=True)[0] == Veto("gold", "a", "ada", "human", "")
    assert len(store.answers("ada", limit=9)) == 5  # the way back is the rater's own
    assert check_results(store) == {"ada": (3, 4)}  # the levels were not the expected ones


def test_checks_are_in_no_queue(store: Store) -> None:
    store.add_tasks([PAIR, GOLD])
    assert store.progress("ada").tasks == 2
    add_checks(store, CHECKS)
    assert store.next_tasks("ada", count=9) == [PAIR] and store.waiting() == {PAIR.key} and store.free_tasks() == []
    release(store, "ada")
    assert store.free_tasks() == [PAIR]
    assert store.progress("ada") == (1, 0, 0, 0, 1) and store.progress(kind="rank").tasks == 0
    assert store.task(GOLD.key) == GOLD and store.task(SIDE.key) == SIDE
    store.add(said("gold", 1.0))
    store.skip(SIDE, "ada")
    assert store.progress("ada") == (1, 0, 0, 0, 1)
    assert seen(store, "ada", "pair") == [Seen(SIDE.key, "pair", "skip", True), Seen(GOLD.key, "pair", "pair", True)]
    assert check_results(store) == {"ada": (0, 1)}  # a skip is no answer


def test_the_current_answer_to_a_check_counts(store: Store) -> None:
    add_checks(store, CHECKS)
    for label, passed in ((1.0, 0), (0.5, 0), (0.25, 1)):
        store.add(said("gold", label))
        assert check_results(store) == {"ada": (passed, 1)}
    add_checks(store, [Check(GOLD, {"item": "a"})])  # mended: what was said counts by what is expected now
    store.add(said("gold", 1.0, "bo"))
    assert check_results(store) == {"ada": (0, 1), "bo": (1, 1)} and check_results(store, "bo") == {"bo": (1, 1)}
    assert check_results(store, "nobody") == {}


@pytest.mark.parametrize(
    ("expected", "items", "value", "shown", "right"),
    [
        ({"side": "left"}, ("a", "b"), 1.0, ("a", "b"), True),
        ({"side": "left"}, ("a", "b"), 1.0, ("b", "a"), False),
        ({"side": "right"}, ("a", "b"), 1.0, ("b", "a"), True),
        ({"side": "right"}, ("a", "b"), 0.5, ("b", "a"), False),
        ({"tie": True}, ("a", "b"), 0.5, ("b", "a"), True),
        ({"tie": True}, ("a", "b"), 0.6, ("b", "a"), False),
        ({"item": "b"}, ("b", "a"), 0.9, ("b", "a"), True),
        ({"item": "b"}, ("b", "a"), 0.5, ("b", "a"), False),
        ({"score": 4, "tolerance": 1}, ("a",), 3.0, (), True),
        ({"score": 4, "tolerance": 1}, ("a",), 2.0, (), False),
        ({"score": 4}, ("a",), 5.0, (), False),
        ({"scores": {"q": 5, "f": 2}, "tolerance": 1}, ("a",), {"scores": {"q": 4, "f": 3}}, (), True),
        ({"scores": {"q": 5, "f": 2}}, ("a",), {"scores": {"q": 5, "f": 3}}, (), False),
        ({"ranks": {"a": 1, "b": 2, "c": 3}}, ("c", "b", "a"), [3, 2, 1], (), True),
        ({"ranks": {"a": 1, "b": 2, "c": 3}}, ("c", "b", "a"), [2, 2, 1], (), False),  # a tie is no order
        ({"ranks": {"a": 1, "b": 2, "c": 3}, "tolerance": 1}, ("c", "b", "a"), [2, 3, 1], (), True),
        ({"ranks": {"a": 1, "b": 2, "c": 3}, "tolerance": 1}, ("c", "b", "a"), [1, 3, 2], (), False),
        (
            {"ranks": {"a": 1, "b": 2, "c": 2}},
            ("a", "b", "c"),
            [1, 3, 2],
            (),
            True,
        ),  # in any order where equal is expected
    ],
)
def test_what_passes(expected: dict, items: tuple, value: Any, shown: tuple, right: bool) -> None:
    assert passes(expected, items, value, shown) is right


@pytest.mark.parametrize(
    "check",
    [
        Check(GOLD, {"item": "c"}),
        Check(GOLD, {"side": "top"}),
        Check(GOLD, {}),
        Check(GOLD, {"item": "a", "tolerance": -1}),
        Check(SCORE, {"score": "4"}),
        Check(SCORE, {"score": float("nan")}),
        Check(LEVELS, {"scores": {"quality": 5}}),
        Check(ORDER, {"ranks": {"a": 1, "b": 2}}),
        Check(Task("p", ("a",), "point"), {"item": "a"}),
    ],
)
def test_what_can_be_no_answer_is_refused_as_a_whole(store: Store, check: Check) -> None:
    with pytest.raises(UserError, match="which is no answer to one of kind .*: give item, side or tie"):
        add_checks(store, [CHECKS[1], check])
    assert store.task(SIDE.key) is None


def test_a_repeat_stands_beside_the_first_answer(store: Store) -> None:
    again = replace(PAIR, kind="repeat")
    assert again.key == repeat_key(PAIR.key) == replace(again, items=("b", "a")).key != PAIR.key
    store.add_tasks([PAIR, again])
    first, second = said("p", 1.0, vote_id="one"), said("p", 0.2, shown=("b", "a"), vote_id="two")
    assert store.add(first) and store.add_repeat(second) and not store.add_repeat(second)
    assert store.preferences(include_superseded=True) == [first] and store.count() == 1
    assert repeat_results(store) == {"ada": (0, 1)}
    latest, before = store.answers("ada", limit=9, kind="pair")
    assert (latest.task, latest.kind, latest.value) == (again, "repeat", 0.2) and before.task == PAIR
    assert store.progress("ada").tasks == 1 and store.next_tasks("bo", 2, count=9) == [PAIR]
    assert [each.asked for each in seen(store, "ada", "pair")] == ["repeat", "pair"]
    store.add_repeat(replace(said("p", 0.7), vote_id="three"))  # changed her mind about the repeat
    assert repeat_results(store) == {"ada": (1, 1)} and store.preferences() == [first]


def test_alike_is_the_same_item_or_two_ties(store: Store) -> None:
    for name, one, two in (("ada", 0.5, 0.5), ("bo", 0.5, 1.0), ("cy", 0.6, 1.0), ("dee", 0.0, 1.0)):
        store.add(said("p", one, name))
        store.add_repeat(replace(said("p", 1 - two, name), items=("b", "a")))  # the same, told in the other order
    store.add_repeat(said("p", 1.0, "eve"))  # whose first answer is not there
    store.add(said("p", 1.0, "flo"))
    store.add_repeat(said("p", 1.0, "flo"))
    store.skip(PAIR, "flo")  # withdrawn
    assert repeat_results(store) == {"ada": (1, 1), "bo": (0, 1), "cy": (1, 1), "dee": (0, 1)}


def test_flags_are_counted_where_they_stand(store: Store) -> None:
    store.add(said("p", 1.0, extra={"too_fast": True}))
    store.add(said("q", 1.0, extra={"too_fast": True, "both_bad": True}))
    store.add(said("q", 1.0, "bo", extra={"too_fast": "yes"}))
    store.skip(PAIR, "cy", extra={"timeout": True})
    assert flagged(store, "too_fast") == {"ada": 2} and flagged(store, "timeout") == {"cy": 1}
    store.add(said("p", 1.0))  # in their own time
    assert flagged(store, "too_fast") == {"ada": 1}
    with store.reading() as connection:
        extra = connection.exec_driver_sql("SELECT extra FROM votes WHERE kind = 'skip'").scalar_one()
    assert json.loads(extra) == {"timeout": True}
