"""What a store says of a study: how far it is, and what each rater did, how fast, and how far they agree with the others."""

import json
import math
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import sqlalchemy as sa

from mmrlhf.agreement import PairOfRaters, cohen_kappa, krippendorff_alpha, rater_agreement
from mmrlhf.annotators import SHRINKAGE, annotator_weights, dawid_skene, reliabilities
from mmrlhf.data import Pair
from mmrlhf.rater_quality import Share, left_shares
from mmrlhf.store import Kind, Store, Task
from mmrlhf.store.queue import held_query
from mmrlhf.store.store import LEASE_SECONDS
from mmrlhf.store.tables import CHECKS, LEASES, VOTES
from mmrlhf.types import Preference

BREAK_SECONDS = 600.0  # a longer gap between two answers is no work
MOST_COMPARED = 100  # raters: their number of pairs grows with its square
MOST_JUDGED = 4000  # answers by which reliability is told, the last ones: it takes a second or two
NEXT = 5  # questions that are shown before they are asked
FIELDS = ("number", "kind", "task", "prompt", "items", "value", "annotator", "source", "shown", "seconds", "time")


class Progress(NamedTuple):
    """Of one kind: how many questions, with all their votes, without, before somebody now, and how many answers."""

    kind: Kind
    questions: int
    complete: int
    open: int
    held: int
    answers: int


class Rater(NamedTuple):
    """What one rater did. None where nothing can be told; `agreement` and `kappa` are over the `shared` answers of others."""

    name: str
    source: str
    answers: int
    skips: int
    seconds: float | None
    agreement: float | None
    kappa: float | None
    shared: int
    reliability: float | None
    per_hour: float | None
    seen: float | None


class Alpha(NamedTuple):
    """Krippendorff's alpha of one kind of answer, over the questions that several raters answered; None where undefined."""

    kind: str
    alpha: float | None
    questions: int


class Study(NamedTuple):
    """Everything that the owner's page shows; times are in seconds since 1970."""

    when: float
    kinds: list[Progress]
    raters: list[Rater]
    alphas: list[Alpha]
    times: list[float]
    next: list[Task]
    lefts: dict[str, Share]
    """Of each rater, how often the left one of two was preferred."""


class Said(NamedTuple):
    """Current answers that can be compared: choices between two items, and levels by (kind, question and criterion)."""

    choices: list[Preference]
    pairs: list[Preference]  # those of the choices that were asked as such, as they were on the screen
    levels: list[tuple[str, str, str, int]]  # kind, unit, annotator, level


def study(store: Store, overlap: int) -> Study:
    """The figures of a store as it is now."""
    with store.reading() as connection:
        query = sa.select(*(VOTES.c[name] for name in FIELDS)).order_by(VOTES.c.number)
        rows = connection.execute(query).all()
        seen = sa.select(LEASES.c.annotator, sa.func.max(LEASES.c.expires)).group_by(LEASES.c.annotator)
        leases = {name: expires - LEASE_SECONDS for name, expires in connection.execute(seen)}
        checks = set(connection.execute(sa.select(CHECKS.c.task)).scalars())
        held = dict(tuple(row) for row in connection.execute(held_query(time.time())))
    # what is said of a check is about the rater, not about the items
    current = list(
        {(row.task, row.annotator): row for row in rows}.values()
    )  # the newest of each takes the place of older ones
    counted = [row for row in current if row.task not in checks]
    said = comparable(counted)
    kinds = []
    for kind in get_args(Kind):
        progress = store.progress("", overlap, kind=kind)
        answers = sum(row.kind == kind for row in counted)
        if progress.tasks or answers:
            left = progress.tasks - progress.complete
            kinds.append(Progress(kind, progress.tasks, progress.complete, left, held.get(kind, 0), answers))
    coming = [task for row in kinds for task in store.free_tasks(overlap, kind=row.kind, limit=NEXT)][:NEXT]
    moments = [moment for row in rows if (moment := seconds_of(row.time)) is not None]
    return Study(
        time.time(),
        kinds,
        raters(rows, current, said, leases),
        alphas(said),
        sorted(moments),
        coming,
        left_shares(said.pairs),
    )


def comparable(rows: Sequence[Any]) -> Said:
    """The answers of which two can be the same: pairs, orders as pairs of their items, and levels."""
    choices: list[Preference] = []
    pairs: list[Preference] = []
    levels: list[tuple[str, str, str, int]] = []
    for row in rows:
        value: Any = None if row.value is None else json.loads(row.value)
        if row.kind == "pair":
            pairs.append(choice_of(row, json.loads(row.items), value, json.loads(row.shown)))
            choices.append(pairs[-1])
        elif row.kind == "rank":
            for (a, rank_a), (b, rank_b) in combinations(zip(json.loads(row.items), value, strict=True), 2):
                choices.append(choice_of(row, (a, b), 0.5 + 0.5 * float(np.sign(rank_b - rank_a)), (a, b)))
        elif row.kind == "score":
            levels.append(("score", row.task, row.annotator, round(value)))
        elif row.kind == "likert":
            levels += [
                ("likert", f"{row.task} {name}", row.annotator, level) for name, level in value["scores"].items()
            ]
    return Said(choices, pairs, levels)


def choice_of(row: Any, items: Sequence[str], label: float, shown: Sequence[str]) -> Preference:
    """A row's choice between two of its items, in the order of the screen."""
    return Preference(row.prompt, (items[0], items[1]), label, row.annotator, row.source, (shown[0], shown[1]))


def raters(rows: Sequence[Any], current: Sequence[Any], said: Said, leases: dict[str, float]) -> list[Rater]:
    """A row for everybody who answered or was asked, who answered most first."""
    events: dict[str, list[Any]] = {name: [] for name in leases}
    standing: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        events.setdefault(row.annotator, []).append(row)
    for row in current:
        standing[row.annotator].append(row)
    names = sorted(events, key=lambda name: (-sum(row.kind != "skip" for row in standing[name]), name))
    together, reliable = compared(said, set(names[:MOST_COMPARED])), reliability(said)
    found = []
    for name in names:
        answers = [row for row in standing[name] if row.kind != "skip"]
        known = [(moment, row.seconds) for row in events[name] if (moment := seconds_of(row.time)) is not None]
        moments = [moment for moment, _ in known] + ([leases[name]] if name in leases else [])
        agreement, kappa, shared = with_others(together, name)
        found.append(
            Rater(
                name, events[name][-1].source if events[name] else "human", len(answers), len(standing[name]) - len(answers),
                statistics.median(row.seconds for row in answers) if answers else None, agreement, kappa, shared,
                reliable.get(name), pace(known), max(moments, default=None),
            )
        )  # fmt: skip
    return found


def compared(said: Said, names: set[str]) -> list[PairOfRaters]:
    """A row for each two of the raters who answered something both; choices and levels apart."""
    _, rows = rater_agreement([choice for choice in said.choices if choice.annotator in names])
    given: dict[str, dict[str, int]] = defaultdict(dict)
    for _, unit, annotator, level in said.levels:
        if annotator in names:
            given[annotator][unit] = level
    for name_0, name_1 in combinations(sorted(given), 2):
        shared = [unit for unit in given[name_0] if unit in given[name_1]]
        if shared:
            a, b = (np.array([given[name][unit] for unit in shared]) for name in (name_0, name_1))
            rows.append(PairOfRaters(name_0, name_1, float((a == b).mean()), cohen_kappa(a, b), len(shared)))
    return rows


def with_others(rows: Iterable[PairOfRaters], name: str) -> tuple[float | None, float | None, int]:
    """(agreement, kappa, shared answers) of one rater with each of the others, weighted by what they share."""
    own = [row for row in rows if name in (row.rater_0, row.rater_1)]
    agreement, kappa = (mean([(getattr(row, what), row.pairs) for row in own]) for what in ("agreement", "kappa"))
    return agreement, kappa, sum(row.pairs for row in own)


def reliability(said: Said) -> dict[str, float]:
    """Of each annotator by Dawid and Skene, where answers overlap; of one with choices and levels, weighted by their number."""
    choices = said.choices[-MOST_JUDGED:]
    pairs = [Pair(c.prompt, Path(c.items[0]), Path(c.items[1]), c.label, annotator=c.annotator) for c in choices]
    _, by_choices = annotator_weights(pairs)
    given_by = Counter(choice.annotator for choice in choices)
    counts: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for name, value in by_choices.items():
        counts[name].append((value, given_by[name]))
    for kind in ("score", "likert"):
        given = [(unit, annotator, level) for one, unit, annotator, level in said.levels if one == kind]
        given = given[-MOST_JUDGED:]
        if len(given) == len({unit for unit, _, _ in given}):
            continue  # no two answered the same
        columns = [np.unique(np.array(column), return_inverse=True) for column in zip(*given, strict=True)]
        (_, units), (names, annotators), (levels, answers) = columns
        found = dawid_skene(units, annotators, answers, len(levels), shrinkage=SHRINKAGE)
        for place, value in enumerate(reliabilities(found).tolist()):
            counts[str(names[place])].append((value, int((annotators == place).sum())))
    means = {name: mean(entries) for name, entries in counts.items()}
    return {name: value for name, value in means.items() if value is not None}


def alphas(said: Said) -> list[Alpha]:
    """Krippendorff's alpha, ordinal, of each kind that several raters answered; of two items: second, tie, first."""
    asked: dict[str, dict[Any, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for choice in said.choices:
        first, second = sorted(choice.items)
        side = float(np.sign(choice.label - 0.5)) * (1 if choice.items[0] == first else -1)
        asked["choices"][choice.prompt, first, second][choice.annotator] = side
    for kind, unit, annotator, level in said.levels:
        asked["levels" if kind == "score" else "levels by criteria"][unit][annotator] = float(level)
    found = []
    for name, units in asked.items():
        shared = [list(answers.values()) for answers in units.values() if len(answers) > 1]
        if shared:
            table = np.full((max(map(len, shared)), len(shared)), np.nan)
            for column, answers in enumerate(shared):
                table[: len(answers), column] = answers
            alpha = krippendorff_alpha(table, "ordinal")
            found.append(Alpha(name, None if math.isnan(alpha) else alpha, len(shared)))
    return found


def pace(events: Sequence[tuple[float, float]]) -> float | None:
    """Answers an hour of work: gaps of more than `BREAK_SECONDS` are none, and the answer after one took what it says."""
    work, before = 0.0, -math.inf
    for moment, seconds in sorted(events):
        work += moment - before if moment - before <= BREAK_SECONDS else min(seconds, BREAK_SECONDS)
        before = moment
    return 3600 * len(events) / work if len(events) > 1 and work > 0 else None


def mean(entries: Sequence[tuple[float, int]]) -> float | None:
    """The weighted mean of the values that are numbers; None where there is none."""
    known = [(value, weight) for value, weight in entries if not math.isnan(value)]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


def seconds_of(text: str) -> float | None:
    """An ISO 8601 time as seconds since 1970; without a zone it is UTC. None for anything else."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
