"""Progress from running counts against counting everything anew in SQL, whatever is said in which order, by several stores."""

import time
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrlhf.store import Store, Task
from mmrlhf.store.checks import Check, add_checks
from mmrlhf.store.queue import IS_CHECK, number, open_to, votes_on_task
from mmrlhf.store.tables import IS_CURRENT, TASKS, VOTES
from mmrlhf.types import Preference

PAIRS = [("a", "b"), ("a", "c"), ("b", "c"), ("c", "d")]
RATERS = st.sampled_from(["ada", "bo", "cy"])
STEPS = st.one_of(
    st.tuples(st.just("queue"), st.sampled_from(PAIRS)),
    st.tuples(st.just("vote"), RATERS, st.sampled_from(PAIRS)),
    st.tuples(st.just("skip"), RATERS, st.sampled_from(PAIRS)),
    st.tuples(st.just("ask"), RATERS, st.integers(1, 3)),
    st.tuples(st.just("check"), st.sampled_from(PAIRS)),
)


def counted(store: Store, annotator: str, overlap: int) -> tuple[int, ...]:
    """The five figures of `Progress`, each by looking at every question."""
    tasks = sa.select(sa.func.count()).select_from(TASKS).where(TASKS.c.kind == "pair", ~IS_CHECK)
    mine = sa.exists().where(VOTES.c.task == TASKS.c.key, VOTES.c.annotator == annotator, IS_CURRENT)
    conditions: list[tuple[Any, ...]] = [
        (),
        (votes_on_task() >= number(overlap),),
        (mine.where(VOTES.c.kind != "skip"),),
        (mine.where(VOTES.c.kind == "skip"),),
        tuple(open_to(annotator, overlap, time.time())),
    ]
    with store.reading() as connection:
        return tuple(connection.execute(tasks.where(*each)).scalar_one() for each in conditions)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=14))
def test_running_counts_are_right(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    url = str(tmp_path_factory.mktemp("tally") / "s.db")
    stores = [Store(url), Store(url)]  # each sees what the other writes
    for place, (what, *who) in enumerate(steps):
        store = stores[place % 2]
        if what == "queue":
            store.add_tasks([Task("p", who[0])])
        elif what == "vote":
            store.add(Preference("p", who[1], 1.0, who[0], "human", who[1]))
        elif what == "skip":
            store.skip(Task("p", who[1]), who[0])
        elif what == "ask":
            store.next_tasks(who[0], who[1])
        else:
            add_checks(store, [Check(Task("p", who[0]), {"tie": True})])
        for each in stores:
            assert each.progress("ada", 2) == counted(each, "ada", 2)
    for name in ("ada", "bo", "nobody"):
        for overlap in (1, 2, 3):
            assert stores[0].progress(name, overlap) == counted(stores[0], name, overlap)
    for store in stores:
        store.close()
