"""What raters say, as the records that the store keeps, and back: one function a mode, each way."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from apps.rate_clock import NO_LIMITS, Clock
from apps.rate_items import Mode
from mmrlhf.errors import UserError
from mmrlhf.segments import SegmentedItem, refuse_contradictions, segment_of
from mmrlhf.store import (
    Answer,
    Judgement,
    LikertJudgement,
    Point,
    PointJudgement,
    Preference,
    RankJudgement,
    SegmentJudgement,
    Store,
    Task,
)
from mmrlhf.types import SegmentLabel

LEVELS = 5
CHOICES = {"pair": ("left", "right", "tie", "both_bad", "skip"), "likert": ("1", "2", "3", "4", "5", "skip")}
DRAFTED = ("save", "skip")  # of the other modes, which say the rest by the vote's `value`


class Vote(BaseModel):
    """What a choice sends; `vote_id` is made by the browser, so that sending it again is not a second vote."""

    vote_id: str = Field(pattern=r"^[0-9a-f-]{16,64}$")
    task: str = Field(pattern=r"^[0-9a-f]{32}$")
    choice: str = Field(max_length=20)
    seconds: float = Field(ge=0, allow_inf_nan=False)
    timeout: bool = False
    """Of a skip: nobody chose it, the time was over."""
    unsafe: list[int] = Field(default=[], max_length=1000)
    """Which of the pictures are unsafe, by their places on the screen, from 0."""
    value: JsonValue = None
    """Of a saved draft: {criterion: level}, a rank for each place on the screen, [Span, …] or [Spot, …]."""


class Span(BaseModel):
    """A marked stretch of a text, in code points."""

    model_config = ConfigDict(extra="forbid")
    start: int = Field(strict=True)
    end: int = Field(strict=True)
    tag: Literal["correct", "misleading", "irrelevant"]
    correction: str | None = Field(default=None, max_length=10_000)


class Spot(BaseModel):
    """A place in a picture, from its top left corner, 0 to 1."""

    x: float = Field(ge=0, le=1)
    y: float = Field(ge=0, le=1)
    tag: str = Field(min_length=1, max_length=100)


Level = Annotated[int, Field(ge=1, le=LEVELS, strict=True)]
Rank = Annotated[int, Field(ge=1, le=1000, strict=True)]
Value = TypeVar("Value")
SCORES = TypeAdapter(dict[str, Level])
RANKS = TypeAdapter(list[Rank])
SPANS = TypeAdapter(list[Span])
SPOTS = TypeAdapter(list[Spot])


def save(store: Store, mode: Mode, task: Task, vote: Vote, annotator: str, clock: Clock = NO_LIMITS) -> None:
    """Put a vote into the store; returns after the commit. HTTPException where it does not fit the question."""
    allowed = CHOICES.get(mode, DRAFTED)
    if vote.choice not in allowed:
        raise HTTPException(422, f"The choice is none of {', '.join(allowed)}.")
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    unsafe = vetoed(task, vote, annotator)
    flags = clock.flags(vote.choice, vote.seconds, vote.timeout)
    if vote.choice == "skip":
        store.skip(task, annotator, vote.vote_id, vote.seconds, now, unsafe=unsafe, extra=flags)
    elif mode == "pair":
        add = store.add_repeat if task.kind == "repeat" else store.add
        add(preference(task, vote, annotator, now, flags))
    else:
        common = {"annotator": annotator, "source": "human", "seconds": vote.seconds, "time": now, "extra": flags}
        RECORD[mode](store, task, vote, {**common, "vote_id": vote.vote_id, "unsafe": unsafe, "prompt": task.prompt})


def preference(
    task: Task, vote: Vote, annotator: str, now: str, flags: Mapping[str, Any] = MappingProxyType({})
) -> Preference:
    """A choice between two pictures as the record that the store keeps."""
    left, right = shown(task, annotator)
    chosen = {"left": left, "right": right}.get(vote.choice)
    return Preference(
        prompt=task.prompt,
        items=(task.item_0, task.item_1),
        label=0.5 if chosen is None else float(chosen == task.item_0),
        annotator=annotator,
        source="human",
        shown=(left, right),
        seconds=vote.seconds,
        time=now,
        vote_id=vote.vote_id,
        extra=({"both_bad": True} if vote.choice == "both_bad" else {}) | dict(flags),
        unsafe=vetoed(task, vote, annotator),
    )


def add_score(store: Store, task: Task, vote: Vote, common: dict[str, Any]) -> None:
    """One level for the one picture."""
    common["extra"] = {"scale": [1, LEVELS], **common["extra"]}
    store.add_judgement(Judgement(item=task.item_0, score=float(vote.choice), **common))


def add_criteria(store: Store, task: Task, vote: Vote, common: dict[str, Any]) -> None:
    """A level by each criterion of the task."""
    scores = read(SCORES.validate_python, vote)
    if set(scores) != set(task.criteria):
        raise HTTPException(422, f"Give a level for each of {', '.join(task.criteria)}.")
    ordered = {name: scores[name] for name in task.criteria}
    store.add_likert(LikertJudgement(item=task.item_0, scores=ordered, levels=LEVELS, text=task.text, **common))


def add_ranking(store: Store, task: Task, vote: Vote, common: dict[str, Any]) -> None:
    """A rank for each picture; they came in the order of the screen."""
    order = shown(task, common["annotator"])
    ranks = read(RANKS.validate_python, vote)
    if len(ranks) != len(order):
        raise HTTPException(422, f"Give a place to each of the {len(order)} pictures.")
    of_item = dict(zip(order, ranks, strict=True))
    in_order = tuple(of_item[item] for item in task.items)
    store.add_ranking(RankJudgement(items=task.items, ranks=in_order, shown=order, **common))


def add_segments(store: Store, task: Task, vote: Vote, common: dict[str, Any]) -> None:
    """Labels on the text, none of which overlap."""
    whole = SegmentedItem(item=task.item_0, segments=(), prompt=task.prompt, answer=task.text)
    try:
        spans = [segment_of(span.model_dump(), whole, "a mark") for span in read(SPANS.validate_python, vote)]
        refuse_contradictions(spans, "the answer")
    except UserError as error:
        raise HTTPException(422, f"The marks do not fit the text: {error}.") from error
    ordered = sorted(spans, key=lambda span: span.start)
    labels = tuple(span for span in ordered if isinstance(span, SegmentLabel))
    if any(one.end > two.start for one, two in zip(ordered, ordered[1:], strict=False)):
        raise HTTPException(422, "Two marks overlap.")
    store.add_segments(SegmentJudgement(item=task.item_0, text=task.text, segments=labels, **common))


def add_points(store: Store, task: Task, vote: Vote, common: dict[str, Any]) -> None:
    """Tagged places in the picture."""
    points = tuple(Point(spot.x, spot.y, spot.tag) for spot in read(SPOTS.validate_python, vote))
    store.add_points(PointJudgement(item=task.item_0, points=points, **common))


RECORD: dict[str, Callable[[Store, Task, Vote, dict[str, Any]], None]] = {
    "likert": add_score,
    "criteria": add_criteria,
    "rank": add_ranking,
    "segments": add_segments,
    "points": add_points,
}


def read(parse: Callable[[Any], Value], vote: Vote) -> Value:
    """A vote's value in the form that its mode has."""
    try:
        return parse(vote.value)
    except ValidationError as error:
        raise HTTPException(422, "The server did not understand this.") from error


def vetoed(task: Task, vote: Vote, annotator: str) -> tuple[str, ...]:
    """The items that a vote calls unsafe."""
    order = shown(task, annotator)
    places = sorted(set(vote.unsafe))
    if places and not 0 <= places[0] <= places[-1] < len(order):
        raise HTTPException(422, "There is no such picture to call unsafe.")
    return tuple(order[place] for place in places)


def shown(task: Task, annotator: str) -> tuple[str, ...]:
    """The items from left to right: a draw for each rater and task that falls the same way after a reload.

    A pair that is asked again has its sides swapped.
    """
    if task.kind == "repeat":
        return shown(replace(task, kind="pair"), annotator)[::-1]
    if not task.item_1:
        return (task.item_0,)
    if len(task.items) > 2:
        return tuple(sorted(task.items, key=lambda item: digest(f"{task.key} {annotator} {item}")))
    first, second = sorted((task.item_0, task.item_1))
    coin = digest(f"{task.key} {annotator}")[0] & 1
    return (second, first) if coin else (first, second)


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def choice_of(answer: Answer, annotator: str) -> str:
    """The button that gave an answer."""
    if answer.kind == "skip" or answer.value is None:
        return "skip"
    if answer.kind == "score":
        return str(round(answer.value))
    if answer.kind not in ("pair", "repeat"):
        return "save"
    if answer.value == 0.5:
        return "both_bad" if answer.extra.get("both_bad") else "tie"
    preferred = answer.task.item_0 if answer.value > 0.5 else answer.task.item_1
    return "left" if shown(answer.task, annotator)[0] == preferred else "right"


def said(answer: Answer, annotator: str) -> dict[str, Any]:
    """An answer as its page shows it; the inverse of `save`."""
    order = shown(answer.task, annotator)
    value: Any = None
    if answer.kind == "likert":
        value = answer.value["scores"]
    elif answer.kind == "rank":
        of_item = dict(zip(answer.task.items, answer.value, strict=True))
        value = [of_item[item] for item in order]
    elif answer.kind == "segments":
        value = answer.value
    elif answer.kind == "point":
        value = [{"x": x, "y": y, "tag": tag} for x, y, tag in answer.value]
    unsafe = [place for place, item in enumerate(order) if item in answer.unsafe]
    return {"number": answer.number, "choice": choice_of(answer, annotator), "value": value, "unsafe": unsafe}
