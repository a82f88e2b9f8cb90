"""Check questions, whose answer is known, pairs asked twice, and hasty answers: what a store says of its raters.

What is expected of a check, as JSON: {"item": HASH}, {"side": "left"|"right"} of the screen, or {"tie": true} of a pair;
{"score"} of a score; {"scores": {CRITERION: LEVEL}} of levels; {"ranks": {HASH: RANK}} of an order. "tolerance" is how far a
level may be off, or how many two items of an order may be the wrong way round.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import sqlalchemy as sa

from mmrlhf.errors import UserError
from mmrlhf.store.database import insert
from mmrlhf.store.records import Kind, Task, question_key
from mmrlhf.store.rows import checked, task_row
from mmrlhf.store.store import Store
from mmrlhf.store.tables import CHECKS, IS_CURRENT, LEASES, TASKS, VOTES

SIDES = ("left", "right")
AT_ONCE = 500  # keys in a query


class Check(NamedTuple):
    """A question, and what a good rater says to it."""

    task: Task
    expected: dict[str, Any]


class Seen(NamedTuple):
    """A question that a rater answered, and how: the kind of the answer, which may be a skip."""

    task: str
    asked: str
    answer: str
    is_check: bool


def add_checks(store: Store, checks: Sequence[Check]) -> None:
    """Register questions as checks, in place of what was expected before: from now on they are in no queue."""
    rows = [check_row(check) for check in checks]
    with store.writing() as connection:
        for task, expected in rows:
            statement = insert(store.engine, CHECKS).values(task=task["key"], expected=expected)
            connection.execute(
                statement.on_conflict_do_update(index_elements=["task"], set_={"expected": statement.excluded.expected})
            )
            connection.execute(insert(store.engine, TASKS).values(task).on_conflict_do_nothing(index_elements=["key"]))


def check_row(check: Check) -> tuple[dict[str, Any], str]:
    """(the row of the task, what is expected as JSON); UserError where that is no answer to it."""
    task, expected = check
    row = task_row(task)
    fits = EXPECTED.get(task.kind)
    tolerance = expected.get("tolerance", 0)
    if fits is None or not fits(task, expected) or not is_number(tolerance) or tolerance < 0:
        raise UserError(
            f"a check question about {task.items!r:.80} got {expected!r:.120}, which is no answer to one of "
            f"kind {task.kind}: give item, side or tie; score; scores; or ranks, and a tolerance of 0 or more"
        )
    return row, checked({"expected": json.dumps(expected)})["expected"]


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def fits_pair(task: Task, expected: dict[str, Any]) -> bool:
    return expected.get("item") in task.items or expected.get("side") in SIDES or expected.get("tie") is True


def fits_likert(task: Task, expected: dict[str, Any]) -> bool:
    scores = expected.get("scores")
    return isinstance(scores, dict) and set(scores) == set(task.criteria) and all(map(is_number, scores.values()))


def fits_rank(task: Task, expected: dict[str, Any]) -> bool:
    ranks = expected.get("ranks")
    return isinstance(ranks, dict) and set(ranks) == set(task.items) and all(map(is_number, ranks.values()))


EXPECTED = {
    "pair": fits_pair,
    "score": lambda task, expected: is_number(expected.get("score")),
    "likert": fits_likert,
    "rank": fits_rank,
}


def passes(expected: dict[str, Any], items: Sequence[str], value: Any, shown: Sequence[str]) -> bool:
    """Whether an answer, as the votes table has it, is what was expected."""
    tolerance = expected.get("tolerance", 0)
    if "score" in expected:
        return abs(value - expected["score"]) <= tolerance
    if "scores" in expected:
        return all(abs(value["scores"][name] - level) <= tolerance for name, level in expected["scores"].items())
    if "ranks" in expected:
        given = dict(zip(items, value, strict=True))
        return wrong_way(expected["ranks"], given) <= tolerance
    preferred = None if value == 0.5 else items[0] if value > 0.5 else items[1]
    if "side" in expected:
        return bool(preferred == shown[SIDES.index(expected["side"])])
    return bool(preferred == expected.get("item"))  # of a tie there is none


def wrong_way(expected: dict[str, int | float], given: dict[str, int | float]) -> int:
    """How many two items of different rank are not in their order."""
    ordered = (sorted(two, key=lambda item: expected[item]) for two in combinations(expected, 2))
    return sum(expected[a] < expected[b] and not given[a] < given[b] for a, b in ordered)


def check_results(store: Store, annotator: str | None = None) -> dict[str, tuple[int, int]]:
    """Of each rater who answered check questions, or of one: (passed, asked). A skip is no answer."""
    query = sa.select(VOTES.c.annotator, VOTES.c["items"], VOTES.c.value, VOTES.c.shown, CHECKS.c.expected)
    query = query.join(CHECKS, CHECKS.c.task == VOTES.c.task).where(VOTES.c.kind != "skip", IS_CURRENT)
    if annotator is not None:
        query = query.where(VOTES.c.annotator == annotator)
    found: dict[str, tuple[int, int]] = {}
    with store.reading() as connection:
        for row in connection.execute(query):
            expected, items, value, shown = map(json.loads, (row.expected, row.items, row.value, row.shown))
            passed, asked = found.get(row.annotator, (0, 0))
            found[row.annotator] = (passed + passes(expected, items, value, shown), asked + 1)
    return found


def repeat_results(store: Store) -> dict[str, tuple[int, int]]:
    """Of each rater who was asked a pair twice: (answered alike, asked twice): the same item, or a tie both times."""
    again = sa.select(VOTES).where(VOTES.c.kind == "repeat", IS_CURRENT).order_by(VOTES.c.number)
    with store.reading() as connection:
        repeats = connection.execute(again).all()
        keys = [question_key("pair", row.prompt, json.loads(row.items)) for row in repeats]
        firsts: dict[tuple[str, str], Any] = {}
        for start in range(0, len(keys), AT_ONCE):
            some = set(keys[start : start + AT_ONCE])
            query = sa.select(VOTES).where(VOTES.c.task.in_(some), VOTES.c.kind == "pair", IS_CURRENT)
            firsts |= {(row.task, row.annotator): row for row in connection.execute(query)}
    found: dict[str, tuple[int, int]] = {}
    for key, row in zip(keys, repeats, strict=True):
        first = firsts.get((key, row.annotator))
        if first is not None:
            alike, asked = found.get(row.annotator, (0, 0))
            found[row.annotator] = (alike + (preferred_in(first) == preferred_in(row)), asked + 1)
    return found


def preferred_in(row: Any) -> str | None:
    """The item that a row's label prefers; None for a tie."""
    value, items = json.loads(row.value), json.loads(row.items)
    return None if value == 0.5 else items[0] if value > 0.5 else items[1]


def flagged(store: Store, flag: str) -> dict[str, int]:
    """Of each rater with any, how many current answers or skips have a flag in `extra`, e.g. too_fast or timeout."""
    query = sa.select(VOTES.c.annotator, VOTES.c.extra).where(VOTES.c.extra != "{}", IS_CURRENT)
    counts: dict[str, int] = defaultdict(int)
    with store.reading() as connection:
        for row in connection.execute(query):
            counts[row.annotator] += json.loads(row.extra).get(flag) is True
    return {annotator: count for annotator, count in counts.items() if count}


def seen(store: Store, annotator: str, kind: Kind) -> list[Seen]:
    """What a rater has answered or skipped of one kind, checks and repeats among it, the newest first."""
    kinds = [kind, "repeat"] if kind == "pair" else [kind]
    query = sa.select(VOTES.c.task, TASKS.c.kind.label("asked"), VOTES.c.kind, CHECKS.c.task.label("check"))
    query = query.join(TASKS, TASKS.c.key == VOTES.c.task).outerjoin(CHECKS, CHECKS.c.task == VOTES.c.task)
    query = query.where(VOTES.c.annotator == annotator, TASKS.c.kind.in_(kinds), IS_CURRENT)
    with store.reading() as connection:
        rows = connection.execute(query.order_by(VOTES.c.number.desc())).all()
    return [Seen(row.task, row.asked, row.kind, row.check is not None) for row in rows]


def release(store: Store, annotator: str) -> None:
    """Give back the questions that a rater has now, so that others get them."""
    mine = LEASES.c.annotator == annotator
    with store.reading() as connection:
        held = connection.execute(sa.select(LEASES.c.task).where(mine).limit(1)).first()
    if held is not None:
        with store.writing() as connection:
            connection.execute(LEASES.delete().where(mine))
