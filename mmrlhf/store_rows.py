"""What the annotation store keeps: questions and answers as frozen records, and their database rows."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from mmrlhf.errors import UserError
from mmrlhf.store_tables import VOTES
from mmrlhf.types import Preference

SOURCES = ("human", "simulated", "ai")


class Item(NamedTuple):
    """A registered picture: its content hash, where its file lies, and the prompt that it was made for."""

    hash: str
    path: str
    prompt: str


@dataclass(frozen=True)
class Task:
    """A question for raters: two items for one prompt, or one item (`item_1` empty). Higher `priority` is asked first."""

    prompt: str
    item_0: str
    item_1: str = ""
    priority: float = 0.0
    why: str = ""

    @property
    def key(self) -> str:
        """Names the question: the same for both orders of the items."""
        return task_key(self.prompt, self.item_0, self.item_1)


@dataclass(frozen=True)
class Judgement:
    """One annotator's score for one item, e.g. 1 to 5."""

    prompt: str
    item: str
    score: float
    annotator: str
    source: Literal["human", "simulated", "ai"]
    seconds: float = 0.0
    time: str = ""
    vote_id: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


class Answer(NamedTuple):
    """An annotator's newest answer to a task; `value` is a label or a score, None for a skip. `number` orders answers in time."""

    number: int
    task: Task
    kind: str
    value: float | None
    extra: dict[str, Any]


class Progress(NamedTuple):
    """Of the tasks of one kind: all, those with enough votes, those one annotator voted on, skipped, and may still answer."""

    tasks: int
    complete: int
    voted: int
    skipped: int
    open: int


def task_key(prompt: str, item_0: str, item_1: str) -> str:
    """32 hex digits that name a question, whichever of its items comes first."""
    text = json.dumps([prompt, *sorted((item_0, item_1))])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def task_of(row: Any) -> Task:
    """The task in a database row."""
    return Task(row.prompt, row.item_0, row.item_1, row.priority, row.why)


def preference_row(preference: Preference) -> dict[str, Any]:
    """The database row of a preference; UserError where it is not one."""
    p = preference
    if len(p.items) != 2 or not all(p.items) or p.items[0] == p.items[1]:
        raise UserError(f"a preference got the items {p.items}: give two different content hashes")
    if sorted(p.shown) != sorted(p.items):
        raise UserError(f"a preference got shown={p.shown}: give its items {p.items} in the order of the screen")
    if not 0 <= p.label <= 1:
        raise UserError(f"a preference got label {p.label}, allowed is 0 to 1: 1 = first, 0 = second, 0.5 = tie")
    common = (p.annotator, p.source, p.seconds, p.time, p.vote_id, p.extra, p.shown)
    return answer_row("pair", p.prompt, p.items, p.label, *common)


def judgement_row(judgement: Judgement) -> dict[str, Any]:
    """The database row of a score; UserError where it is not one."""
    j = judgement
    if not j.item or not math.isfinite(j.score):
        raise UserError(f"a judgement got item '{j.item}' and score {j.score}: give a content hash and a number")
    return answer_row(
        "score", j.prompt, (j.item,), j.score, j.annotator, j.source, j.seconds, j.time, j.vote_id, j.extra
    )


def answer_row(
    kind: str,
    prompt: str,
    items: tuple[str, ...],
    value: float | None,
    annotator: str,
    source: str,
    seconds: float,
    when: str,
    vote_id: str,
    extra: Mapping[str, Any] | None = None,
    shown: tuple[str, ...] = (),
) -> dict[str, Any]:
    """A row of the votes table, after the checks that every kind of answer shares."""
    if not annotator or source not in SOURCES:
        raise UserError(
            f"an answer got annotator '{annotator}', source '{source}': give a name, one of {', '.join(SOURCES)}"
        )
    if not 0 <= seconds < math.inf:
        raise UserError(f"an answer got seconds={seconds}: give a finite time, 0 or more")
    extra = dict(extra or {})
    try:
        text = json.dumps(extra, allow_nan=False)
        same = json.loads(text) == extra
    except (TypeError, ValueError):
        same = False
    if not same:
        raise UserError(f"an answer got extra={extra!r}: give JSON with text keys, no tuples, NaN or objects")
    first, second = (*items, "")[:2]
    return {
        "vote_id": vote_id or None,
        "kind": kind,
        "task": task_key(prompt, first, second),
        "prompt": prompt,
        "items": json.dumps(items),
        "value": value,
        "annotator": annotator,
        "source": source,
        "shown": json.dumps(shown),
        "seconds": seconds,
        "time": when,
        "extra": text,
    }


def refuse_another_vote(connection: sa.Connection, row: Mapping[str, Any]) -> None:
    """UserError if a row's `vote_id` is recorded for another answer; the same answer again is a retry."""
    known = connection.execute(sa.select(VOTES).where(VOTES.c.vote_id == row["vote_id"])).one()
    parts = ("kind", "prompt", "items", "value", "annotator", "source")
    if any(getattr(known, part) != row[part] for part in parts):
        raise UserError(f"the vote id '{row['vote_id']}' is recorded for another vote: make a fresh id for each vote")


def preference_of(row: Any) -> Preference:
    """The preference in a database row."""
    (first, second), (left, right) = json.loads(row.items), json.loads(row.shown)
    return Preference(
        prompt=row.prompt,
        items=(first, second),
        label=row.value,
        annotator=row.annotator,
        source=row.source,
        shown=(left, right),
        seconds=row.seconds,
        time=row.time,
        vote_id=row.vote_id or "",
        extra=json.loads(row.extra),
    )


def judgement_of(row: Any) -> Judgement:
    """The score of one item in a database row."""
    return Judgement(
        prompt=row.prompt,
        item=json.loads(row.items)[0],
        score=row.value,
        annotator=row.annotator,
        source=row.source,
        seconds=row.seconds,
        time=row.time,
        vote_id=row.vote_id or "",
        extra=json.loads(row.extra),
    )
