"""The owner's figures against counts by hand and the functions that they come from."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from apps.owner import Watch
from apps.owner_stats import pace, seconds_of, study
from mmrlhf.agreement import cohen_kappa, krippendorff_alpha, rater_agreement
from mmrlhf.annotators import annotator_weights
from mmrlhf.data import Pair
from mmrlhf.rater_quality import left_shares
from mmrlhf.store import Judgement, LikertJudgement, RankJudgement, SegmentJudgement, Store, Task
from mmrlhf.store.checks import Check, add_checks
from mmrlhf.types import Preference


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(str(tmp_path / "r.db"))
    yield opened
    opened.close()


def say(
    store: Store, task: Task, name: str, label: float, minute: float = 0.0, seconds: float = 3.0, flip: bool = False
) -> None:
    items = task.items[::-1] if flip else task.items
    value = 1 - label if flip else label
    pair = (items[0], items[1])
    time = f"2026-01-01T10:{int(minute):02}:{60 * (minute % 1):06.3f}+00:00"
    store.add(Preference(task.prompt, pair, value, name, "human", pair, seconds=seconds, time=time))


def three_raters(store: Store, count: int = 12) -> list[Task]:
    """Ada and bo agree but for one tie, cy says the opposite of ada; each in an order of items of their own."""
    tasks = [Task("p", (f"a{i}", f"b{i}")) for i in range(count)]
    store.add_tasks(tasks)
    for i, task in enumerate(tasks):
        label = float(i % 3 > 0)
        say(store, task, "ada", label, minute=i, seconds=float(i))
        say(store, task, "bo", 0.5 if i == 0 else label, minute=i, flip=True)
        say(store, task, "cy", 1 - label, minute=i)
    return tasks


def test_progress_by_kind(store: Store) -> None:
    tasks = three_raters(store)
    store.add_tasks([Task("p", (f"c{i}",), "score") for i in range(5)] + [Task("p", ("x", "y"))])
    store.add_judgement(Judgement("p", "c0", 4.0, "ada", "human"))
    store.skip(tasks[0], "cy")  # withdraws her vote
    store.next_tasks("dee", overlap=3, count=2)
    found = study(store, 3)
    pairs, scores = found.kinds
    assert pairs == ("pair", 13, 11, 2, 2, 35)
    assert scores == ("score", 5, 0, 5, 0, 1)
    assert study(store, 1).kinds[1].complete == 1
    assert {rater.name for rater in found.raters} == {"ada", "bo", "cy", "dee"}
    assert next(rater for rater in found.raters if rater.name == "dee").seen is not None
    assert [task.items for task in found.next] == [(f"c{i}",) for i in range(5)]  # both pairs are before dee


def test_what_a_rater_did(store: Store) -> None:
    tasks = three_raters(store)
    say(store, tasks[3], "ada", 1.0, minute=20, seconds=3.0)  # the same again: one answer, two events
    store.skip(tasks[11], "ada", when="2026-01-01T10:21:00+00:00")
    ada = next(rater for rater in study(store, 3).raters if rater.name == "ada")
    assert (ada.answers, ada.skips) == (11, 1)
    assert ada.seconds == np.median([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    assert ada.seen == seconds_of("2026-01-01T10:21:00+00:00")
    # 11 minutes for the first 12, 9 to the next, 1 to the skip; the first took no time
    assert ada.per_hour == pytest.approx(14 / (21 / 60))


def test_agreement_and_reliability_are_those_of_the_library(store: Store) -> None:
    three_raters(store)
    found = {rater.name: rater for rater in study(store, 3).raters}
    preferences = store.preferences()
    rows = {(row.rater_0, row.rater_1): row for row in rater_agreement(preferences)[1]}
    assert found["ada"].shared == 24
    assert found["ada"].agreement == pytest.approx((rows["ada", "bo"].agreement + rows["ada", "cy"].agreement) / 2)
    assert rows["ada", "bo"].agreement == pytest.approx(11.5 / 12) and rows["ada", "cy"].agreement == 0.0
    assert found["ada"].kappa == pytest.approx((rows["ada", "bo"].kappa + rows["ada", "cy"].kappa) / 2)
    pairs = [Pair(p.prompt, Path(p.items[0]), Path(p.items[1]), p.label, annotator=p.annotator) for p in preferences]
    _, reliable = annotator_weights(pairs)
    assert {name: rater.reliability for name, rater in found.items()} == pytest.approx(reliable)
    assert reliable["ada"] > reliable["cy"]


def test_alpha_of_choices_and_levels(store: Store) -> None:
    """The choices as +1, 0, -1 for the first in the order of the hashes; levels as they are."""
    three_raters(store)
    levels = {"ada": [1, 2, 3, 4, 5, 3], "bo": [1, 2, 3, 4, 4, 3], "cy": [2, 2, 3, 5, 5, 1]}
    for name, given in levels.items():
        for i, level in enumerate(given):
            store.add_judgement(Judgement("p", f"c{i}", float(level), name, "human"))
    ada = np.array([1.0 if i % 3 else -1.0 for i in range(12)])
    bo, cy = np.where(np.arange(12) == 0, 0.0, ada), -ada
    choices, scores = study(store, 3).alphas
    assert choices.questions == 12 and scores.questions == 6
    assert choices.alpha == pytest.approx(krippendorff_alpha(np.stack([ada, bo, cy]), "ordinal"))
    table = np.array(list(levels.values()), dtype=float)
    assert scores.alpha == pytest.approx(krippendorff_alpha(table, "ordinal"))


def test_levels_agree_where_they_are_equal(store: Store) -> None:
    given = {"ada": [1, 2, 3, 4], "bo": [1, 2, 3, 5]}
    for name, levels in given.items():
        for i, level in enumerate(levels):
            scores = {"quality": level, "fit": 6 - level}
            store.add_likert(LikertJudgement(prompt="p", item=f"c{i}", scores=scores, annotator=name, source="human"))
    ada = study(store, 2).raters[0]
    assert ada.agreement == 6 / 8 and ada.shared == 8
    pooled = {name: np.array([v for level in levels for v in (level, 6 - level)]) for name, levels in given.items()}
    assert ada.kappa == pytest.approx(cohen_kappa(pooled["ada"], pooled["bo"]))
    assert ada.reliability is not None and 0 < ada.reliability <= 1


def test_a_ranking_is_the_choices_between_its_items(store: Store) -> None:
    for name, ranks in (("ada", (1, 2, 3)), ("bo", (1, 3, 2)), ("cy", (1, 1, 1))):
        record = RankJudgement(
            prompt="p", items=("x", "y", "z"), ranks=ranks, shown=("z", "x", "y"), annotator=name, source="human"
        )
        store.add_ranking(record)
    found = {rater.name: rater for rater in study(store, 3).raters}
    # ada with bo: 2 of 3; each with cy, who ties all three: half
    assert found["ada"].agreement == pytest.approx((2 + 1.5) / 6) and found["cy"].agreement == pytest.approx(0.5)


def test_what_cannot_be_told_is_none(store: Store) -> None:
    empty = study(store, 1)
    assert (empty.kinds, empty.raters, empty.alphas, empty.times, empty.next) == ([], [], [], [], [])
    store.add_segments(
        SegmentJudgement(prompt="p", item="c", text="words", segments=(), annotator="ada", source="human")
    )
    (ada,) = study(store, 1).raters
    assert ada == ("ada", "human", 1, 0, 0.0, None, None, 0, None, None, None)


def test_pace_leaves_breaks_out() -> None:
    events = [(0.0, 30.0), (60.0, 30.0), (120.0, 30.0), (10_000.0, 30.0), (10_060.0, 30.0)]
    assert pace(events) == pytest.approx(3600 * 5 / (30 + 60 + 60 + 30 + 60))
    assert pace(events[:1]) is None and pace([]) is None
    assert seconds_of("yesterday") is None and seconds_of("1970-01-01T00:01:00") == 60


def test_who_leans_to_a_side_is_told_from_the_same_reading(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `left_shares` says of the preferences: the newest of each, without checks, skips, repeats and rankings."""
    tasks = three_raters(store)
    say(store, tasks[1], "ada", 0.0, minute=30, flip=True)  # she changed her mind
    store.skip(tasks[2], "bo")
    check = Task("p", ("k0", "k1"))
    add_checks(store, [Check(check, {"item": "k0"})])
    say(store, check, "ada", 1.0)
    store.add_ranking(
        RankJudgement(annotator="cy", source="human", prompt="p", items=("a", "b"), ranks=(1, 2), shown=("a", "b"))
    )
    twice = Preference("p", (tasks[3].item_0, tasks[3].item_1), 1.0, "ada", "human", (tasks[3].item_1, tasks[3].item_0))
    store.add_repeat(twice)
    expected = left_shares(store.preferences())
    assert expected.keys() == {"ada", "bo", "cy"} and expected["ada"].answers == 12
    monkeypatch.setattr(Store, "preferences", None)  # a look at a large store reads its answers once
    look = Watch(store, 3).look()
    assert look.study.lefts == expected
    assert dict(look.columns)["left"].keys() == expected.keys()
