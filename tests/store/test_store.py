"""The annotation store: what goes in comes out equal, whoever writes beside it, and whenever it is killed; on both databases."""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from mmrlhf.store import Item, Judgement, Store, Task
from mmrlhf.store.database import writing
from mmrlhf.types import Preference

ROOT = Path(__file__).parents[2]
VOTE = Preference("a cat", ("aa", "bb"), 1.0, "ada", "human", ("bb", "aa"), 2.5, "2026-01-01T00:00:00Z", "id-1")
TASK = Task("a cat", ("aa", "bb"))
SINGLE = Task("a cat", ("aa",), "score")

TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20
)  # no lone surrogates, no NUL
NAME = TEXT.filter(bool)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def fields_of_preferences(draw: st.DrawFn) -> dict[str, Any]:
    """Not the preferences themselves: beartype looks at a random item of a tuple, and a strategy may not use `random`."""
    items = draw(st.tuples(NAME, NAME).filter(lambda pair: pair[0] != pair[1]))
    return dict(
        prompt=draw(TEXT),
        items=items,
        label=draw(st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1)),
        annotator=draw(NAME),
        source=draw(st.sampled_from(["human", "simulated", "ai"])),
        shown=draw(st.sampled_from([items, items[::-1]])),
        seconds=draw(st.floats(0, 1e6)),
        time=draw(TEXT),
        vote_id=draw(TEXT),
        extra=draw(st.dictionaries(TEXT, JSON, max_size=3)),
        unsafe=draw(st.sampled_from([(), items[:1], items])),
        app_version=draw(TEXT),
    )


def pair_of(task: Task) -> tuple[str, str]:
    return task.item_0, task.item_1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.lists(fields_of_preferences(), min_size=1, max_size=5, unique_by=lambda p: p["vote_id"]))
def test_what_goes_in_comes_out_equal(store: Store, fields: list[dict[str, Any]]) -> None:
    batch = [Preference(**each) for each in fields]
    with writing(store.engine) as connection:  # one database for all the examples: making one is slow
        connection.exec_driver_sql("DELETE FROM votes")
    assert store.add_many(batch) == len(batch)
    assert store.preferences(include_superseded=True) == batch


def test_it_is_there_after_reopening(tmp_path: Path, url: str) -> None:
    first = Store(url)
    first.add_items({"aa": (tmp_path / "a.png", "a cat")})
    first.add(VOTE)
    first.add_judgement(Judgement("a cat", "aa", 4.0, "ada", "human", extra={"scale": [1, 5]}))
    first.close()
    again = Store(url)
    assert again.preferences() == [VOTE]
    assert again.judgements() == [Judgement("a cat", "aa", 4.0, "ada", "human", extra={"scale": [1, 5]})]
    assert again.items() == {"aa": Item("aa", str(tmp_path / "a.png"), "a cat")}
    assert again.item("aa") == again.items()["aa"] and again.item("zz") is None
    again.close()


def test_a_retry_is_not_a_second_vote(store: Store) -> None:
    assert store.add(VOTE) is True
    assert store.add(replace(VOTE, seconds=9.0)) is False  # the same vote, sent later
    assert store.preferences(include_superseded=True) == [VOTE]
    with pytest.raises(UserError, match="'id-1' is recorded for another vote: make a fresh id"):
        store.add(replace(VOTE, label=0.0))
    assert store.add(replace(VOTE, vote_id="")) and store.add(replace(VOTE, vote_id=""))  # no id: no retry


def test_a_changed_mind_supersedes_and_nothing_is_lost(store: Store) -> None:
    turned = replace(VOTE, items=("bb", "aa"), label=0.5, vote_id="id-2")  # the same pair in the other order
    other_prompt = replace(VOTE, prompt="a dog", vote_id="id-3")
    other_person = replace(VOTE, annotator="bo", vote_id="id-4")
    store.add_many([VOTE, other_prompt, other_person, turned])
    assert store.preferences() == [other_prompt, other_person, turned]
    assert store.preferences(include_superseded=True) == [VOTE, other_prompt, other_person, turned]
    assert store.count() == 3


def test_a_skip_withdraws_a_vote(store: Store) -> None:
    store.add_tasks([TASK])
    store.add(VOTE)
    assert store.skip(TASK, "ada", "id-9") and not store.skip(TASK, "ada", "id-9")
    assert store.preferences() == [] and store.preferences(include_superseded=True) == [VOTE]
    assert store.progress("ada") == (1, 0, 0, 1, 0)
    assert store.next_task("ada") is None and store.next_task("bo") == TASK


def test_add_many_is_all_or_none(store: Store) -> None:
    with pytest.raises(UserError, match="another vote"):
        store.add_many([VOTE, replace(VOTE, annotator="bo")])
    assert store.preferences() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 1.5}, "label 1.5, allowed is 0 to 1"),
        ({"label": float("nan")}, "label nan, allowed is 0 to 1"),
        ({"items": ("aa", "aa"), "shown": ("aa", "aa")}, "give two different content hashes"),
        ({"shown": ("aa", "cc")}, "in the order of the screen"),
        ({"annotator": ""}, "give a name"),
        ({"seconds": float("inf")}, "give a finite time"),
        ({"extra": {"a": (1, 2)}}, "give JSON with text keys"),
        ({"extra": {"a": float("nan")}}, "give JSON with text keys"),
        ({"extra": {"a": object()}}, "give JSON with text keys"),
        ({"prompt": "\ud800"}, "give valid Unicode"),
        ({"prompt": "a\0b"}, "prompt got 'a.x00b': give a text without the character NUL"),
        ({"unsafe": ("cc",)}, "allowed are its items"),
        ({"unsafe": ("aa", "aa")}, "each once"),
    ],
)
def test_what_would_not_come_out_equal_is_refused(store: Store, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        store.add(replace(VOTE, **change))
    assert store.preferences() == []


def test_the_queue_gives_the_most_urgent_task_and_keeps_it(store: Store) -> None:
    tasks = [Task("p", (f"a{i}", f"b{i}"), priority=float(i % 3), why=f"because {i}") for i in range(6)]
    store.add_tasks(tasks)
    urgent = [tasks[2], tasks[5], tasks[1]]
    assert store.next_tasks("ada", count=2) == urgent[:2]
    store.add_tasks([replace(tasks[0], priority=9.0)])
    assert store.next_tasks("ada", count=2) == urgent[:2]  # asking again, after a reload, gives the same
    assert store.task(tasks[0].key) == replace(tasks[0], priority=9.0)
    assert store.next_task("bo") == replace(tasks[0], priority=9.0)


def test_no_task_goes_beyond_its_overlap_or_twice_to_one(store: Store) -> None:
    tasks = [Task("p", (f"a{i}", f"b{i}")) for i in range(5)]
    store.add_tasks(tasks + [Task("p", (f"b{i}", f"a{i}")) for i in range(5)])  # the other order is no new question
    counts: dict[str, int] = {}
    for _ in range(20):
        for name in ("ada", "bo", "cy"):
            task = store.next_task(name, overlap=2)
            if task is not None:
                store.add(Preference("p", pair_of(task), 0.5, name, "human", pair_of(task)))
                counts[task.key] = counts.get(task.key, 0) + 1
    assert sorted(counts.values()) == [2] * 5
    assert store.count() == 10
    assert store.progress("ada", 2).complete == 5


def test_a_lease_blocks_others_until_it_ends(store: Store) -> None:
    store.add_tasks([TASK])
    assert store.next_tasks("ada", lease=0.2) == [TASK]
    assert store.next_task("bo") is None
    assert store.progress("bo").open == 0
    threading.Event().wait(0.3)
    assert store.next_task("bo") == TASK
    assert store.next_task("ada") is None


def test_single_tasks_and_pairs_have_their_own_queues(store: Store) -> None:
    store.add_tasks([TASK, SINGLE])
    assert store.next_task("ada", kind="score") == SINGLE
    assert store.next_task("ada") == TASK
    store.add_judgement(Judgement("a cat", "aa", 3.0, "ada", "human"))
    assert store.next_task("ada", kind="score") is None
    assert store.progress("ada", kind="score") == (1, 1, 1, 0, 0)
    assert store.count("score") == 1 and store.count() == 0


def test_answers_go_back_in_time(store: Store) -> None:
    store.add_tasks([TASK, Task("p", ("x", "y"))])
    store.add(VOTE)
    store.skip(Task("p", ("x", "y")), "ada")
    last = store.answers("ada")[0]
    assert (last.task.prompt, last.kind, last.value) == ("p", "skip", None)
    first = store.answers("ada", before=last.number)[0]
    assert (first.task, first.kind, first.value) == (TASK, "pair", 1.0)
    assert store.answers("ada", before=first.number) == []
    assert store.answers("bo") == []


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task("p", ("",)), "takes two different items"),
        (Task("p", ("a", "a")), "takes two different items"),
        (Task("p", ("a",)), "kind pair takes two different items"),
        (Task("p", ("a", "b"), "score"), "kind score takes one item"),
        (Task("p", ("a",), "rank"), "takes 2 or more different items"),
        (Task("p", ("a", "b", "a"), "rank"), "takes 2 or more different items"),
        (Task("p", ("a", "b"), priority=float("nan")), "give a finite priority"),
        (Task("p", ("a",), "segments"), "give a text with the kind segments"),
        (Task("p", ("a",), "point", "a text"), "give a text with the kind segments"),
        (Task("p", ("a",), "likert"), "give different criteria with the kind likert"),
        (Task("p", ("a",), "likert", criteria=("sharp", "sharp")), "give different criteria with the kind likert"),
        (Task("p", ("a",), "score", criteria=("sharp",)), "give different criteria with the kind likert"),
        (Task("p\0", ("a", "b")), "without the character NUL"),
    ],
    ids=str,
)
def test_what_is_no_question_is_refused(store: Store, task: Task, message: str) -> None:
    with pytest.raises(UserError, match=message):
        store.add_tasks([task])


def test_many_writers_at_once(store: Store) -> None:
    store.add_tasks([Task("p", (f"a{i}", f"b{i}")) for i in range(10)])
    failures: list[BaseException] = []

    def vote(name: str) -> None:
        try:
            while (task := store.next_task(name, overlap=6)) is not None:
                items = pair_of(task)
                store.add(Preference("p", items, 1.0, name, "human", items, vote_id=f"{name}-{task.key}"))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=vote, args=(f"rater {i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert store.count() == 60


RATER = """
import sys
from mmrlhf.store import Preference, Store
store = Store(sys.argv[1])
while (task := store.next_task(sys.argv[2], overlap=2)) is not None:
    items = (task.item_0, task.item_1)
    store.add(Preference("p", items, 1.0, sys.argv[2], "human", items, vote_id=f"{sys.argv[2]}-{task.key}"))
"""


def test_many_processes_at_once(url: str) -> None:
    """More raters than a task needs, in processes that also make the store together: each task gets exactly its overlap."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    commands = [[sys.executable, "-c", RATER, url, f"rater {i}"] for i in range(3)]
    store = Store(url)
    store.add_tasks([Task("p", (f"a{i}", f"b{i}")) for i in range(30)])
    raters = [subprocess.Popen(command, env=environment) for command in commands]
    assert [rater.wait(120) for rater in raters] == [0] * 3
    votes = Counter(preference.items for preference in store.preferences(include_superseded=True))
    store.close()
    assert len(votes) == 30 and set(votes.values()) == {2}


def test_a_store_is_made_once_by_whoever_comes_first(url: str) -> None:
    secrets: list[bytes] = []

    def open_it() -> None:
        store = Store(url)
        secrets.append(store.secret())
        store.close()

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(secrets) == 6 and len(set(secrets)) == 1


WRITER = """
import sys
from mmrlhf.store import Store
from mmrlhf.types import Preference
store = Store(sys.argv[1])
for i in range(10**6):
    name = f"{sys.argv[2]}-{i}"
    store.add(Preference("p", (name, "b"), 1.0, "ada", "human", (name, "b"), vote_id=name))
    print(name, flush=True)
"""


def test_a_killed_writer_loses_nothing_acknowledged(url: str) -> None:
    acknowledged: list[str] = []
    for number in range(3):
        command = [sys.executable, "-c", WRITER, url, f"round{number}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline() for _ in range(20 + 9 * number)]
            os.kill(writer.pid, signal.SIGKILL)
            lines += writer.stdout.readlines()  # acknowledged while the signal was on its way
        acknowledged += [line.strip() for line in lines if line.endswith("\n")]
        store = Store(url)
        kept = [p.vote_id for p in store.preferences()]
        store.close()
        assert set(acknowledged) <= set(kept)
        assert len(kept) <= len(acknowledged) + number + 1  # at most one a round was kept, but not yet acknowledged
    assert len(acknowledged) >= 87
