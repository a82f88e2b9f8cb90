"""Records of the annotation store as rows of its tables and back: what cannot come out equal is refused on the way in."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import sqlalchemy as sa

from mmrlhf.errors import UserError
from mmrlhf.segments import SegmentedItem, is_whole, refuse_contradictions, segment_of, segment_row
from mmrlhf.store.records import (
    Answer,
    Answered,
    Judgement,
    Kind,
    LikertJudgement,
    Point,
    PointJudgement,
    RankJudgement,
    SegmentJudgement,
    Task,
    Veto,
    question_key,
)
from mmrlhf.store.tables import VOTES
from mmrlhf.types import Preference, SegmentLabel

SOURCES = ("human", "simulated", "ai")
KINDS: tuple[str, ...] = get_args(Kind)
MOST_ITEMS = 1000
ITEM_COUNTS = {"pair": (2, 2), "repeat": (2, 2), "rank": (2, MOST_ITEMS)}  # from, to; of the other kinds one


def task_row(task: Task) -> dict[str, Any]:
    """The database row of a question; UserError where it is none."""
    least, most = ITEM_COUNTS.get(task.kind, (1, 1))
    items = task.items
    if not least <= len(items) <= most or not all(items) or len(set(items)) < len(items):
        asked = "one item" if most == 1 else f"{least} or more different items" if most > 2 else "two different items"
        raise UserError(f"{task} is no question: a task of kind {task.kind} takes {asked}, each a content hash")
    if not math.isfinite(task.priority):
        raise UserError(f"{task} is no question: give a finite priority")
    if (task.kind == "segments" and not task.text) or (task.text and task.kind not in ("segments", "likert")):
        raise UserError(
            f"{task} is no question: give a text with the kind segments, or likert if it is judged, else none"
        )
    if bool(task.criteria) != (task.kind == "likert") or len(set(filter(None, task.criteria))) < len(task.criteria):
        raise UserError(f"{task} is no question: give different criteria with the kind likert, else none")
    row = {"key": task.key, "kind": task.kind, "prompt": task.prompt, "items": json.dumps(items), "text": task.text}
    return checked({**row, "criteria": json.dumps(task.criteria), "priority": task.priority, "why": task.why})


def task_of(row: Any) -> Task:
    """The task in a database row."""
    items, criteria = tuple(json.loads(row.items)), tuple(json.loads(row.criteria))
    return Task(row.prompt, items, row.kind, row.text, criteria, row.priority, row.why)


def preference_row(preference: Preference) -> dict[str, Any]:
    """The database row of a preference; UserError where it is not one."""
    p = preference
    if len(p.items) != 2 or not all(p.items) or p.items[0] == p.items[1]:
        raise UserError(f"a preference got the items {p.items}: give two different content hashes")
    if sorted(p.shown) != sorted(p.items):
        raise UserError(f"a preference got shown={p.shown}: give its items {p.items} in the order of the screen")
    if not 0 <= p.label <= 1:
        raise UserError(f"a preference got label {p.label}, allowed is 0 to 1: 1 = first, 0 = second, 0.5 = tie")
    return answer_row(p, "pair", p.items, float(p.label), shown=p.shown)


def repeat_row(preference: Preference) -> dict[str, Any]:
    """The database row of a preference that was asked for once more: of a question of its own."""
    key = question_key("repeat", preference.prompt, preference.items)
    return preference_row(preference) | {"kind": "repeat", "task": key}


def judgement_row(judgement: Judgement) -> dict[str, Any]:
    """The database row of a score; UserError where it is not one."""
    j = judgement
    if not j.item or not math.isfinite(j.score):
        raise UserError(f"a judgement got item '{j.item}' and score {j.score}: give a content hash and a number")
    return answer_row(j, "score", (j.item,), float(j.score))


def rank_row(ranking: RankJudgement) -> dict[str, Any]:
    """The database row of an order of items; UserError where it is not one."""
    r = ranking
    if not 2 <= len(r.items) <= MOST_ITEMS or not all(r.items) or len(set(r.items)) < len(r.items):
        raise UserError(f"a ranking got the items {r.items!r:.80}: give two or more different content hashes")
    if sorted(r.shown) != sorted(r.items):
        raise UserError(f"a ranking got shown={r.shown!r:.80}: give its items in the order of the screen")
    if len(r.ranks) != len(r.items) or not all(is_whole(rank) and rank >= 1 for rank in r.ranks):
        raise UserError(
            f"a ranking got the ranks {r.ranks!r:.80}, allowed is a whole number from 1, the best, for each of its "
            f"{len(r.items)} items"
        )
    return answer_row(r, "rank", r.items, r.ranks, shown=r.shown)


def likert_row(judgement: LikertJudgement) -> dict[str, Any]:
    """The database row of levels by criteria; UserError where they are none."""
    j = judgement
    if not j.item or not j.scores or not all(j.scores):
        raise UserError(
            f"a Likert judgement got item '{j.item}', scores {j.scores!r:.80}: give a content hash, a level a criterion"
        )
    right = is_whole(j.levels) and j.levels >= 2
    if not right or not all(is_whole(score) and 1 <= score <= j.levels for score in j.scores.values()):
        raise UserError(
            f"a Likert judgement got scores {j.scores!r:.80} of {j.levels} levels, allowed is a whole number from 1 to levels, "
            "which are 2 or more"
        )
    value = {"scores": j.scores, "levels": j.levels}
    return answer_row(j, "likert", (j.item,), value, text=j.text, criteria=tuple(j.scores))


def segments_row(judgement: SegmentJudgement) -> dict[str, Any]:
    """The database row of labels on a text; UserError where a span, a tag or a correction is not allowed."""
    j = judgement
    if not j.item or not j.text:
        raise UserError(f"a judgement of segments got item '{j.item}', text '{j.text}': give a content hash and a text")
    if other := [label.item for label in j.segments if label.item != j.item]:
        raise UserError(f"a judgement of segments of '{j.item}' got a label of '{other[0]}': give each the same item")
    where = f"a judgement of segments of '{j.item}'"
    values = [segment_row(label) for label in j.segments]
    whole = SegmentedItem(item=j.item, segments=(), prompt=j.prompt, answer=j.text)
    refuse_contradictions([segment_of(value, whole, where) for value in values], where)
    return answer_row(j, "segments", (j.item,), values, text=j.text)


def point_row(judgement: PointJudgement) -> dict[str, Any]:
    """The database row of points in a picture; UserError where they are none."""
    j = judgement
    if not j.item:
        raise UserError("a judgement of points got an empty item: give a content hash")
    for point in j.points:
        if not 0 <= point.x <= 1 or not 0 <= point.y <= 1 or not point.tag:
            raise UserError(f"a judgement of points got {point}, allowed is x and y from 0 to 1, and a tag")
    return answer_row(j, "point", (j.item,), [[float(point.x), float(point.y), point.tag] for point in j.points])


def skip_row(task: Task, skipped: Answered) -> dict[str, Any]:
    """The database row of passing on a task."""
    return answer_row(skipped, "skip", task.items, None, prompt=task.prompt, text=task.text, task=task.key)


def answer_row(
    record: Any,
    kind: str,
    items: Sequence[str],
    value: Any,
    *,
    text: str = "",
    criteria: Sequence[str] = (),
    shown: Sequence[str] = (),
    prompt: str | None = None,
    task: str | None = None,
) -> dict[str, Any]:
    """A row of the votes table, after the checks that every kind of answer shares; `prompt` is the record's, if not given."""
    if not record.annotator or record.source not in SOURCES:
        raise UserError(
            f"an answer got annotator '{record.annotator}', source '{record.source}': give a name, one of "
            f"{', '.join(SOURCES)}"
        )
    if not 0 <= record.seconds < math.inf:
        raise UserError(f"an answer got seconds={record.seconds}: give a finite time, 0 or more")
    unsafe = record.unsafe
    if not set(unsafe) <= set(items) or len(set(unsafe)) < len(unsafe):
        raise UserError(f"an answer got unsafe={unsafe!r:.80}, allowed are its items {tuple(items)!r:.80}, each once")
    prompt = record.prompt if prompt is None else prompt
    row = {
        "vote_id": record.vote_id or None,
        "kind": kind,
        "task": question_key(kind, prompt, items, text, criteria) if task is None else task,
        "prompt": prompt,
        "items": json.dumps(items),
        "text": text,
        "value": None if value is None else json.dumps(value, allow_nan=False),
        "unsafe": json.dumps(unsafe),
        "annotator": record.annotator,
        "source": record.source,
        "shown": json.dumps(shown),
        "seconds": record.seconds,
        "time": record.time,
        "extra": extra_text(record.extra),
        "app_version": record.app_version,
    }
    return checked(row)


def extra_text(extra: Mapping[str, Any]) -> str:
    """Anything that JSON gives back equal, as JSON."""
    try:
        text = json.dumps(extra, allow_nan=False)
        same = json.loads(text) == extra
    except (TypeError, ValueError):
        same = False
    if not same:
        raise UserError(f"an answer got extra={extra!r}: give JSON with text keys, no tuples, NaN or objects")
    return text


def checked(row: dict[str, Any]) -> dict[str, Any]:
    """The row; UserError for a text that not every database can hold."""
    for name, value in row.items():
        if isinstance(value, str) and "\0" in value:
            raise UserError(f"{name} got {value!r:.80}: give a text without the character NUL")
    return row


def refuse_another_vote(connection: sa.Connection, row: Mapping[str, Any]) -> None:
    """UserError if a row's `vote_id` is recorded for another answer; the same answer again is a retry."""
    known = connection.execute(sa.select(VOTES).where(VOTES.c.vote_id == row["vote_id"])).one()
    parts = ("kind", "task", "prompt", "items", "text", "value", "unsafe", "annotator", "source")
    if any(getattr(known, part) != row[part] for part in parts):
        raise UserError(f"the vote id '{row['vote_id']}' is recorded for another vote: make a fresh id for each vote")


def common(row: Any) -> dict[str, Any]:
    """What every record has, from a database row."""
    names = ("prompt", "annotator", "source", "seconds", "time", "app_version")
    said = {name: getattr(row, name) for name in names}
    unsafe = tuple(json.loads(row.unsafe))
    return {**said, "vote_id": row.vote_id or "", "extra": json.loads(row.extra), "unsafe": unsafe}


def preference_of(row: Any) -> Preference:
    """The preference in a database row."""
    (first, second), (left, right) = json.loads(row.items), json.loads(row.shown)
    return Preference(items=(first, second), label=json.loads(row.value), shown=(left, right), **common(row))


def judgement_of(row: Any) -> Judgement:
    """The score of one item in a database row."""
    return Judgement(item=json.loads(row.items)[0], score=json.loads(row.value), **common(row))


def rank_of(row: Any) -> RankJudgement:
    """The order of items in a database row."""
    items, ranks, shown = (tuple(json.loads(text)) for text in (row.items, row.value, row.shown))
    return RankJudgement(items=items, ranks=ranks, shown=shown, **common(row))


def likert_of(row: Any) -> LikertJudgement:
    """The levels by criteria in a database row."""
    return LikertJudgement(item=json.loads(row.items)[0], text=row.text, **json.loads(row.value), **common(row))


def segments_of(row: Any) -> SegmentJudgement:
    """The labels on a text in a database row."""
    item = json.loads(row.items)[0]
    labels = tuple(SegmentLabel(item=item, **value) for value in json.loads(row.value))
    return SegmentJudgement(item=item, text=row.text, segments=labels, **common(row))


def point_of(row: Any) -> PointJudgement:
    """The points in a database row."""
    points = tuple(Point(*value) for value in json.loads(row.value))
    return PointJudgement(item=json.loads(row.items)[0], points=points, **common(row))


def vetoes_of(row: Any) -> list[Veto]:
    """The vetoes in a database row."""
    return [Veto(row.prompt, item, row.annotator, row.source, row.time) for item in json.loads(row.unsafe)]


def answer_of(row: Any, task: Task) -> Answer:
    """An annotator's answer to a task, from its database row.

    Ranks are put in the order of the task's items, and a label is about its first one, whatever the record's own order.
    """
    value: Any = None if row.value is None else json.loads(row.value)
    items = json.loads(row.items)
    if row.kind == "rank":
        value = [value[items.index(item)] for item in task.items]
    elif row.kind in ("pair", "repeat") and items[0] != task.item_0:
        value = 1 - value
    return Answer(row.number, task, row.kind, value, json.loads(row.extra), tuple(json.loads(row.unsafe)))
