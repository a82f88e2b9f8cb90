"""Every kind of answer: in and out equal, superseding, queued by its kind, vetoed, and refused where it is none."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrlhf import __version__
from mmrlhf.errors import UserError
from mmrlhf.store import (
    Judgement,
    LikertJudgement,
    Point,
    PointJudgement,
    Preference,
    RankJudgement,
    SegmentJudgement,
    Store,
    Task,
    Veto,
)
from mmrlhf.store.database import writing
from mmrlhf.types import SegmentLabel

TEXT = "A red bus and a cat 🐈 on it."
WHO: dict[str, Any] = {"annotator": "ada", "source": "human"}
RANKING = RankJudgement(prompt="p", items=("a", "b", "c"), ranks=(2, 1, 2), shown=("c", "a", "b"), **WHO)
LIKERT = LikertJudgement(prompt="p", item="a", scores={"sharp": 2, "faithful": 5}, text=TEXT, **WHO)
LABELS = (SegmentLabel("a", 2, 9, "misleading", "blue bus"), SegmentLabel("a", 14, 21, "correct"))
SEGMENTS = SegmentJudgement(prompt="p", item="a", text=TEXT, segments=LABELS, **WHO)
POINTS = PointJudgement(prompt="p", item="a", points=(Point(0.0, 1.0, "hand"), Point(1 / 3, 0.5, "text")), **WHO)
TASKS = {
    "rank": Task("p", ("c", "b", "a"), "rank"),
    "likert": Task("p", ("a",), "likert", TEXT, ("faithful", "sharp")),
    "segments": Task("p", ("a",), "segments", TEXT),
    "point": Task("p", ("a",), "point"),
    "pair": Task("p", ("b", "a")),
    "score": Task("p", ("a",), "score"),
}
RECORDS: dict[str, Any] = {
    "rank": RANKING,
    "likert": LIKERT,
    "segments": SEGMENTS,
    "point": POINTS,
    "pair": Preference("p", ("a", "b"), 0.75, "ada", "human", ("a", "b")),
    "score": Judgement("p", "a", 4.0, "ada", "human"),
}


def add(store: Store, record: Any) -> bool:
    ways = {
        RankJudgement: store.add_ranking,
        LikertJudgement: store.add_likert,
        SegmentJudgement: store.add_segments,
        PointJudgement: store.add_points,
        Preference: store.add,
        Judgement: store.add_judgement,
    }
    return ways[type(record)](record)  # type: ignore[operator]


def read(store: Store, kind: str, include_superseded: bool = False) -> list[Any]:
    ways: dict[str, Any] = {
        "rank": store.rankings,
        "likert": store.likert,
        "segments": store.segments,
        "point": store.points,
        "pair": store.preferences,
        "score": store.judgements,
    }
    return ways[kind](include_superseded)


@pytest.mark.parametrize("kind", RECORDS)
def test_each_kind_comes_out_equal_and_is_superseded(store: Store, kind: Any) -> None:
    first = replace(RECORDS[kind], vote_id="id-1", seconds=2.5, time="2026-01-01T00:00:00Z", extra={"a": [1]})
    second = replace(RECORDS[kind], vote_id="id-2", unsafe=("a",), app_version="7.0")
    other = replace(RECORDS[kind], vote_id="id-3", annotator="bo")
    assert add(store, first) and not add(store, first)  # a retry is no second answer
    assert first.app_version == __version__
    assert add(store, second) and add(store, other)
    assert read(store, kind) == [second, other]
    assert read(store, kind, include_superseded=True) == [first, second, other]
    assert store.count(kind) == 2 and len(read(store, kind)) == 2
    with pytest.raises(UserError, match="'id-1' is recorded for another vote"):
        add(store, replace(first, unsafe=("a",)))
    with store.engine.connect() as connection:
        versions = connection.exec_driver_sql("SELECT app_version FROM votes ORDER BY number").scalars().all()
    assert versions == [__version__, "7.0", __version__]


def test_each_kind_has_a_queue_of_its_own(store: Store) -> None:
    """All six tasks are about the same picture; an answer of one kind settles the task of that kind alone."""
    store.add_tasks(list(TASKS.values()))
    store.add_tasks([replace(TASKS["rank"], items=("b", "a", "c"), why="again")])  # the same question in another order
    TASKS_NOW = {**TASKS, "rank": replace(TASKS["rank"], why="again")}
    done = set()
    for kind, record in RECORDS.items():
        assert store.next_tasks("ada", kind=kind) == [TASKS_NOW[kind]]  # type: ignore[arg-type]
        assert store.waiting(kind=kind) == {TASKS[kind].key}  # type: ignore[arg-type]
        add(store, record)
        done.add(kind)
        for each in TASKS:
            progress = store.progress("ada", kind=each)  # type: ignore[arg-type]
            assert progress == ((1, 1, 1, 0, 0) if each in done else (1, 0, 0, 0, 1))
    assert store.next_tasks("bo", kind="rank") == []


def test_answers_come_back_as_the_page_needs_them(store: Store) -> None:
    store.add_tasks(list(TASKS.values()))
    for kind in ("rank", "likert", "segments", "point", "pair", "score"):
        add(store, replace(RECORDS[kind], unsafe=("a",)))
    found = {answer.kind: answer for answer in store.answers("ada", limit=9)}
    assert all(found[kind].task == TASKS[kind] and found[kind].unsafe == ("a",) for kind in TASKS)
    assert found["rank"].value == [2, 1, 2]  # of c, b and a: the task's order
    assert found["likert"].value == {"scores": {"sharp": 2, "faithful": 5}, "levels": 5}
    assert found["segments"].value == [
        {"start": 2, "end": 9, "tag": "misleading", "correction": "blue bus"},
        {"start": 14, "end": 21, "tag": "correct"},
    ]
    assert found["point"].value == [[0.0, 1.0, "hand"], [1 / 3, 0.5, "text"]]
    assert found["pair"].value == 0.25 and found["score"].value == 4.0  # the pair's task has b first
    assert [answer.kind for answer in store.answers("ada", limit=9, kind="point")] == ["point"]
    assert store.answers("ada", before=2**63 - 1)[0].kind == "score"


def test_vetoes_stand_beside_any_answer_and_go_with_it(store: Store) -> None:
    add(store, replace(RANKING, unsafe=("b", "c"), time="now"))
    add(store, replace(RECORDS["score"], unsafe=("a",)))
    store.skip(TASKS["point"], "bo", unsafe=("a",), when="later")  # will not look at it
    ada = [Veto("p", item, "ada", "human", when) for item, when in (("b", "now"), ("c", "now"), ("a", ""))]
    assert store.vetoes() == [*ada, Veto("p", "a", "bo", "human", "later")]
    add(store, RANKING)  # a changed mind
    assert [veto.item for veto in store.vetoes()] == ["a", "a"]
    assert store.points() == []
    with pytest.raises(UserError, match="unsafe=.'z',., allowed are its items"):
        store.skip(TASKS["point"], "bo", unsafe=("z",))


@pytest.mark.parametrize("kind", TASKS)
def test_a_skip_withdraws_an_answer_of_any_kind(store: Store, kind: Any) -> None:
    store.add_tasks([TASKS[kind]])
    add(store, RECORDS[kind])
    assert store.skip(TASKS[kind], "ada", "id-9") and not store.skip(TASKS[kind], "ada", "id-9")
    assert read(store, kind) == [] and len(read(store, kind, include_superseded=True)) == 1
    assert store.progress("ada", kind=kind) == (1, 0, 0, 1, 0)


UNIT, WORD = st.floats(0, 1), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ranks=st.lists(st.integers(1, 9), min_size=2, max_size=8),
    scores=st.dictionaries(WORD, st.integers(1, 7), min_size=1, max_size=5),
    points=st.lists(st.tuples(UNIT, UNIT, WORD), max_size=5),
    text=WORD,
    prompt=WORD,
)
def test_anything_comes_out_equal(
    store: Store, ranks: list[int], scores: dict[str, int], points: list[Any], text: str, prompt: str
) -> None:
    with writing(store.engine) as connection:
        connection.exec_driver_sql("DELETE FROM votes")
    items = tuple(f"item {i}" for i in range(len(ranks)))
    records = [
        RankJudgement(prompt=prompt, items=items, ranks=tuple(ranks), shown=items[::-1], **WHO),
        LikertJudgement(prompt=prompt, item=text, scores=scores, levels=7, text=text, **WHO),
        SegmentJudgement(
            prompt=prompt, item="a", text=text, segments=(SegmentLabel("a", 0, len(text), "correct"),), **WHO
        ),
        PointJudgement(prompt=prompt, item=text, points=tuple(Point(*point) for point in points), **WHO),
    ]
    for record in records:
        add(store, record)
    assert [*store.rankings(), *store.likert(), *store.segments(), *store.points()] == records
    assert list(store.likert()[0].scores) == list(scores)  # in the order in which they were given


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (replace(RANKING, items=("a",), ranks=(1,), shown=("a",)), "give two or more different content hashes"),
        (replace(RANKING, items=("a", "b", "a")), "give two or more different content hashes"),
        (replace(RANKING, shown=("a", "b")), "give its items in the order of the screen"),
        (replace(RANKING, ranks=(1, 2)), "a whole number from 1, the best, for each of its 3 items"),
        (replace(RANKING, ranks=(0, 1, 2)), "a whole number from 1, the best, for each of its 3 items"),
        (replace(LIKERT, item=""), "give a content hash, a level a criterion"),
        (replace(LIKERT, scores={}), "give a content hash, a level a criterion"),
        (replace(LIKERT, scores={"": 1}), "give a content hash, a level a criterion"),
        (replace(LIKERT, scores={"sharp": 6}), "allowed is a whole number from 1 to levels"),
        (replace(LIKERT, levels=1), "which are 2 or more"),
        (replace(SEGMENTS, text=""), "give a content hash and a text"),
        (replace(SEGMENTS, item="b"), "got a label of 'a': give each the same item"),
        (replace(SEGMENTS, text="A red"), "allowed is 0 <= start < end <= 5 characters"),
        (replace(SEGMENTS, segments=LABELS[:1] * 2), "judges the span 2 to 9 twice"),
        (replace(SEGMENTS, segments=(SegmentLabel("a", 0, 1, "correct", "An"),)), "and a correction: leave it out"),
        (replace(POINTS, item=""), "got an empty item"),
        (replace(POINTS, points=(Point(1.1, 0.0, "hand"),)), "allowed is x and y from 0 to 1, and a tag"),
        (replace(POINTS, points=(Point(0.0, float("nan"), "hand"),)), "allowed is x and y from 0 to 1, and a tag"),
        (replace(POINTS, points=(Point(0.0, 0.0, ""),)), "allowed is x and y from 0 to 1, and a tag"),
        (replace(POINTS, annotator=""), "give a name"),
        (replace(LIKERT, text="a\0b"), "give a text without the character NUL"),
    ],
)
def test_what_is_no_answer_is_refused(store: Store, record: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        add(store, record)
    assert [store.count(kind) for kind in TASKS] == [0] * 6  # type: ignore[arg-type]
