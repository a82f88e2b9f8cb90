"""What the annotation store keeps, as frozen records: questions, and what people (or programs) answered.

Every answer says who gave it, when, with which version of the software (`app_version`), and which of its items are `unsafe`: a
veto, beside whatever else was said. `time` is ISO 8601; `vote_id` makes sending it twice harmless.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from mmrlhf import __version__
from mmrlhf.points import Point
from mmrlhf.types import SegmentLabel

Kind = Literal["pair", "score", "rank", "likert", "segments", "point"]
Asked = Kind | Literal["repeat"]  # a pair once more, after the same person answered it


class Item(NamedTuple):
    """A registered picture: its content hash, where its file lies, and the prompt that it was made for."""

    hash: str
    path: str
    prompt: str


@dataclass(frozen=True)
class Task:
    """A question for raters about items of one prompt, named by their content hashes. Higher `priority` is asked first.

    `kind` is the kind of answer: which of two items (pair), a score of one, the order of two or more (rank), levels of one by
    each of `criteria` (likert), labels on spans of `text` about one (segments), or points in one (point). `text` is what a
    model answered about the item; likert may have one, too. A repeat is a pair that its raters answered before.
    """

    prompt: str
    items: tuple[str, ...]
    kind: Asked = "pair"
    text: str = ""
    criteria: tuple[str, ...] = ()
    priority: float = 0.0
    why: str = ""

    @property
    def key(self) -> str:
        """Names the question: the same for every order of the items and of the criteria."""
        return question_key(self.kind, self.prompt, self.items, self.text, self.criteria)

    @property
    def item_0(self) -> str:
        """The first item."""
        return self.items[0]

    @property
    def item_1(self) -> str:
        """The second item; empty where there is none."""
        return self.items[1] if len(self.items) > 1 else ""


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
    unsafe: tuple[str, ...] = ()
    app_version: str = __version__


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What the records of the newer kinds share: who answered, how long it took, and when."""

    annotator: str
    source: Literal["human", "simulated", "ai"]
    seconds: float = 0.0
    time: str = ""
    vote_id: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    unsafe: tuple[str, ...] = ()
    app_version: str = __version__


@dataclass(frozen=True, kw_only=True)
class RankJudgement(Answered):
    """An order of two or more items: a rank for each, 1 the best; equal ranks are ties. `shown` is the order of the screen."""

    prompt: str
    items: tuple[str, ...]
    ranks: tuple[int, ...]
    shown: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LikertJudgement(Answered):
    """A level from 1 to `levels`, the best, by each criterion, of an item, or of a `text` about it.

    It answers the task that has just these criteria.
    """

    prompt: str
    item: str
    scores: dict[str, int]
    levels: int = 5
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class SegmentJudgement(Answered):
    """Labels on spans of a `text` about an item, which is the item of each label, too. No labels: nothing to mark was found."""

    prompt: str
    item: str
    text: str
    segments: tuple[SegmentLabel, ...]


@dataclass(frozen=True, kw_only=True)
class PointJudgement(Answered):
    """Points in a picture. None: nothing to point at was found."""

    prompt: str
    item: str
    points: tuple[Point, ...]


class Veto(NamedTuple):
    """An item that an annotator's current answer, of any kind or a skip, calls unsafe."""

    prompt: str
    item: str
    annotator: str
    source: str
    time: str


class Answer(NamedTuple):
    """An annotator's newest answer to a task; `number` orders answers in time.

    `value` is a label (pair, repeat) or a score; the ranks of the task's items, in their order (rank); {"scores", "levels"}
    (likert); [{"start", "end", "tag", "correction" if any}, …] (segments); [[x, y, tag], …] (point); None for a skip.
    """

    number: int
    task: Task
    kind: str
    value: Any
    extra: dict[str, Any]
    unsafe: tuple[str, ...] = ()


class Progress(NamedTuple):
    """Of the tasks of one kind: all, those with enough votes, those one annotator voted on, skipped, and may still answer."""

    tasks: int
    complete: int
    voted: int
    skipped: int
    open: int


def task_key(prompt: str, item_0: str, item_1: str) -> str:
    """32 hex digits that name a question about a pair, or about one item (`item_1` empty), whichever item comes first."""
    return digest([prompt, *sorted((item_0, item_1))])


def question_key(kind: str, prompt: str, items: Sequence[str], text: str = "", criteria: Iterable[str] = ()) -> str:
    """32 hex digits that name a question of any kind, whatever the order of items and criteria."""
    if kind in ("pair", "score", "repeat"):  # as in the first layout, which had no kinds
        first, second = (*items, "", "")[:2]
        key = task_key(prompt, first, second)
        return repeat_key(key) if kind == "repeat" else key
    return digest([kind, prompt, sorted(items), text, sorted(criteria)])


def repeat_key(pair: str) -> str:
    """Names the question that asks for a pair once more."""
    return digest(["repeat", pair])


def digest(parts: list[Any]) -> str:
    """32 hex digits of something that is JSON."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
