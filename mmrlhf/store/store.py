"""The annotation record: an append-only database that survives a kill at any instant.

A vote is acknowledged after its commit, which waits for the disk. Nothing is ever changed: a changed mind is a new row that
supersedes the older one of the same annotator on the same task; a skip after a vote withdraws it.
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from mmrlhf import __version__
from mmrlhf.errors import UserError
from mmrlhf.store.database import insert, open_database, reading, store_exists, trouble, writing
from mmrlhf.store.queue import free_query, next_queries, number, waiting_query
from mmrlhf.store.records import (
    Answer,
    Answered,
    Item,
    Judgement,
    Kind,
    LikertJudgement,
    PointJudgement,
    Progress,
    RankJudgement,
    SegmentJudgement,
    Task,
    Veto,
)
from mmrlhf.store.rows import (
    answer_of,
    checked,
    judgement_of,
    judgement_row,
    likert_of,
    likert_row,
    point_of,
    point_row,
    preference_of,
    preference_row,
    rank_of,
    rank_row,
    refuse_another_vote,
    repeat_row,
    segments_of,
    segments_row,
    skip_row,
    task_of,
    task_row,
    vetoes_of,
)
from mmrlhf.store.tables import IS_CURRENT, ITEMS, LEASES, ON_CHECK, SETTINGS, TASKS, VOTES
from mmrlhf.store.tally import Tally
from mmrlhf.types import Preference

LEASE_SECONDS = 900.0
Record = TypeVar("Record")


class Store:
    """One database, shared by any number of threads and processes: of one machine in SQLite, of many in PostgreSQL.

    `url` is `sqlite:///FILE`, a path, or `postgresql://USER@HOST/NAME`; missing folders and tables are made, and those of an
    older layout are upgraded. UserError where it is none of ours, damaged, out of reach, or of a newer layout.
    """

    def __init__(self, url: str) -> None:
        self.database = open_database(url)
        self.engine = self.database.engine
        self.tally = Tally()

    @property
    def name(self) -> str:
        """The file, or the URL without its password: for messages."""
        return self.database.name

    @property
    def path(self) -> Path | None:
        """The file of a store in SQLite."""
        return self.database.path

    def add_items(self, items: Mapping[str, tuple[str | Path, str]]) -> None:
        """Register pictures by content hash as (path, prompt); a newer path replaces the older one."""
        rows = [checked({"hash": key, "path": str(path), "prompt": prompt}) for key, (path, prompt) in items.items()]
        self._upsert(ITEMS, rows, key="hash", updated=("path", "prompt"))

    def items(self) -> dict[str, Item]:
        """Every registered picture, by content hash."""
        with self.reading() as connection:
            return {row.hash: Item(row.hash, row.path, row.prompt) for row in connection.execute(sa.select(ITEMS))}

    def item(self, key: str) -> Item | None:
        """One registered picture, or None."""
        with self.reading() as connection:
            row = connection.execute(sa.select(ITEMS).where(ITEMS.c.hash == key)).first()
        return None if row is None else Item(row.hash, row.path, row.prompt)

    def add_tasks(self, tasks: Sequence[Task]) -> None:
        """Queue questions; one that is there already (in any order of its items) takes the new priority and reason."""
        self._upsert(TASKS, [task_row(task) for task in tasks], key="key", updated=("priority", "why"))

    def task(self, key: str) -> Task | None:
        """The queued question of this key, or None."""
        with self.reading() as connection:
            row = connection.execute(sa.select(TASKS).where(TASKS.c.key == key)).first()
        return None if row is None else task_of(row)

    def next_task(self, annotator: str, overlap: int = 1, *, kind: Kind = "pair") -> Task | None:
        """The question that this annotator should answer now, leased to them; see `next_tasks`."""
        tasks = self.next_tasks(annotator, overlap, 1, kind=kind)
        return tasks[0] if tasks else None

    def next_tasks(
        self,
        annotator: str,
        overlap: int = 1,
        count: int = 2,
        *,
        kind: Kind = "pair",
        lease: float = LEASE_SECONDS,
    ) -> list[Task]:
        """Up to `count` questions of a kind for this annotator, first the one to answer now; asking again gives the same.

        None that they voted on or skipped, and none on which `overlap` others voted or hold a lease, which ends after
        `lease` seconds.
        """
        now = time.time()
        with self.writing() as connection:
            connection.execute(LEASES.delete().where(LEASES.c.expires <= now))
            held, others = next_queries(annotator, overlap, kind, now)
            rows = list(connection.execute(held.limit(number(count))))
            if len(rows) < count:
                rows += connection.execute(others.limit(number(count - len(rows))))
            for place, row in enumerate(rows):  # `since` keeps the order of the queue among those leased together
                values = {"task": row.key, "annotator": annotator, "since": now + place * 1e-3, "expires": now + lease}
                statement = insert(self.engine, LEASES).values(values)
                renewed = {"expires": now + lease}
                connection.execute(statement.on_conflict_do_update(index_elements=["task", "annotator"], set_=renewed))
        return [task_of(row) for row in rows]

    def waiting(self, overlap: int = 1, *, kind: Kind = "pair") -> set[str]:
        """The keys of the questions that lack votes and are not given up: nobody passed on them, or someone has them now.

        A question that was passed on is offered to the other raters when their pages ask next; it waits again from then on.
        """
        with self.reading() as connection:
            return set(connection.execute(waiting_query(overlap, kind, time.time())).scalars())

    def free_tasks(self, overlap: int = 1, *, kind: Kind = "pair", limit: int | None = None) -> list[Task]:
        """The questions of a kind that lack votes and that nobody has before them now, the next one first; no checks."""
        query = free_query(overlap, kind, time.time()).limit(limit)
        with self.reading() as connection:
            return [task_of(row) for row in connection.execute(query)]

    def newest(self) -> int:
        """The number of the last answer or skip of all, 0 where there is none: whether anything is new costs no search."""
        with self.reading() as connection:
            return connection.execute(sa.select(sa.func.max(VOTES.c.number))).scalar_one() or 0

    def progress(self, annotator: str = "", overlap: int = 1, *, kind: Kind = "pair") -> Progress:
        """How far the queue of a kind is, and how far one annotator is in it."""
        with self.reading() as connection:
            return self.tally.progress(connection, annotator, overlap, kind, time.time())

    def answers(
        self, annotator: str, before: int | None = None, limit: int = 1, *, kind: Kind | None = None
    ) -> list[Answer]:
        """This annotator's current answers to queued tasks, the newest first; `before` is the number of one already seen.

        `kind` asks for tasks of one kind only: of pairs, those that were asked again among them.
        """
        said = (VOTES.c.kind, VOTES.c["items"], VOTES.c.value, VOTES.c.extra, VOTES.c.unsafe)
        query = sa.select(VOTES.c.number, VOTES.c.task, *said).join(TASKS, TASKS.c.key == VOTES.c.task)
        query = query.where(VOTES.c.annotator == annotator, IS_CURRENT)
        if before is not None:
            query = query.where(VOTES.c.number < number(before))
        if kind is not None:
            query = query.where(TASKS.c.kind.in_([kind, "repeat"] if kind == "pair" else [kind]))
        with self.reading() as connection:
            rows = connection.execute(query.order_by(VOTES.c.number.desc()).limit(number(limit))).all()
            keys = [row.task for row in rows]
            found = connection.execute(sa.select(TASKS).where(TASKS.c.key.in_(keys)))
            tasks = {row.key: task_of(row) for row in found}
        return [answer_of(row, tasks[row.task]) for row in rows]

    def add(self, preference: Preference) -> bool:
        """Record one preference; returns after the commit. False where this `vote_id` is recorded already."""
        return self.add_many([preference]) == 1

    def add_many(self, preferences: Iterable[Preference]) -> int:
        """Record several in one transaction, all or none; returns how many are new."""
        return self._append([preference_row(preference) for preference in preferences])

    def add_repeat(self, preference: Preference) -> bool:
        """Record what an annotator says of a pair when asked again, beside what they said first; as `add`."""
        return self._append([repeat_row(preference)]) == 1

    def add_judgement(self, judgement: Judgement) -> bool:
        """Record the score of one item; as `add`."""
        return self._append([judgement_row(judgement)]) == 1

    def add_ranking(self, ranking: RankJudgement) -> bool:
        """Record an order of items; as `add`."""
        return self._append([rank_row(ranking)]) == 1

    def add_likert(self, judgement: LikertJudgement) -> bool:
        """Record levels by several criteria; as `add`."""
        return self._append([likert_row(judgement)]) == 1

    def add_segments(self, judgement: SegmentJudgement) -> bool:
        """Record labels on the spans of a text; as `add`."""
        return self._append([segments_row(judgement)]) == 1

    def add_points(self, judgement: PointJudgement) -> bool:
        """Record points in a picture; as `add`."""
        return self._append([point_row(judgement)]) == 1

    def skip(
        self,
        task: Task,
        annotator: str,
        vote_id: str = "",
        seconds: float = 0.0,
        when: str = "",
        *,
        unsafe: tuple[str, ...] = (),
        extra: Mapping[str, Any] | None = None,
        app_version: str = __version__,
    ) -> bool:
        """Record that an annotator passes on a task, which withdraws an earlier vote of theirs; as `add`."""
        skipped = Answered(annotator=annotator, source="human", seconds=seconds, time=when, vote_id=vote_id,
                           extra=dict(extra or {}), unsafe=unsafe, app_version=app_version)  # fmt: skip
        return self._append([skip_row(task, skipped)]) == 1

    def preferences(self, include_superseded: bool = False, include_checks: bool = False) -> list[Preference]:
        """The preferences in the order in which they came; without `include_superseded`, the current ones only.

        Answers to check questions are about the rater, not about the items: they need `include_checks`.
        """
        return self._records("pair", preference_of, include_superseded, include_checks)

    def judgements(self, include_superseded: bool = False, include_checks: bool = False) -> list[Judgement]:
        """The scores of single items; as `preferences`."""
        return self._records("score", judgement_of, include_superseded, include_checks)

    def rankings(self, include_superseded: bool = False, include_checks: bool = False) -> list[RankJudgement]:
        """The orders of items; as `preferences`."""
        return self._records("rank", rank_of, include_superseded, include_checks)

    def likert(self, include_superseded: bool = False, include_checks: bool = False) -> list[LikertJudgement]:
        """The levels by several criteria; as `preferences`."""
        return self._records("likert", likert_of, include_superseded, include_checks)

    def segments(self, include_superseded: bool = False, include_checks: bool = False) -> list[SegmentJudgement]:
        """The labels on texts; as `preferences`."""
        return self._records("segments", segments_of, include_superseded, include_checks)

    def points(self, include_superseded: bool = False, include_checks: bool = False) -> list[PointJudgement]:
        """The points in pictures; as `preferences`."""
        return self._records("point", point_of, include_superseded, include_checks)

    def vetoes(self, include_checks: bool = False) -> list[Veto]:
        """What current answers of any kind, and skips, call unsafe, in the order in which it was said."""
        query = sa.select(VOTES).where(VOTES.c.unsafe != "[]", IS_CURRENT).order_by(VOTES.c.number)
        with self.reading() as connection:
            rows = connection.execute(query if include_checks else query.where(~ON_CHECK))
            return [veto for row in rows for veto in vetoes_of(row)]

    def count(self, kind: Kind = "pair", include_checks: bool = False) -> int:
        """How many current answers of a kind there are."""
        query = sa.select(sa.func.count()).select_from(VOTES).where(VOTES.c.kind == kind, IS_CURRENT)
        with self.reading() as connection:
            return connection.execute(query if include_checks else query.where(~ON_CHECK)).scalar_one()

    def secret(self) -> bytes:
        """32 random bytes made once for this store, to sign what raters' browsers keep."""
        with self.writing() as connection:
            fresh = insert(self.engine, SETTINGS).values(name="secret", value=secrets.token_hex(32))
            connection.execute(fresh.on_conflict_do_nothing())
            query = sa.select(SETTINGS.c.value).where(SETTINGS.c.name == "secret")
            return bytes.fromhex(connection.execute(query).scalar_one())

    def close(self) -> None:
        """Let go of the database. Everything is on disk before, too."""
        self.engine.dispose()

    def _records(
        self, kind: Kind, of_row: Callable[[Any], Record], include_superseded: bool, include_checks: bool
    ) -> list[Record]:
        wanted = [VOTES.c.kind == kind, *([] if include_superseded else [IS_CURRENT])]
        query = sa.select(VOTES).where(*wanted, *([] if include_checks else [~ON_CHECK])).order_by(VOTES.c.number)
        with self.reading() as connection:
            rows = connection.execute(query).all()
        return [of_row(row) for row in rows]

    def _append(self, rows: list[dict[str, Any]]) -> int:
        new = 0
        with self.writing() as connection:
            for row in rows:
                statement = insert(self.engine, VOTES).values(row).on_conflict_do_nothing(index_elements=["vote_id"])
                if connection.execute(statement.returning(VOTES.c.number)).first() is not None:
                    new += 1
                    lease = (LEASES.c.task == row["task"], LEASES.c.annotator == row["annotator"])
                    connection.execute(LEASES.delete().where(*lease))
                else:
                    refuse_another_vote(connection, row)
        return new

    def _upsert(self, table: sa.Table, rows: list[dict[str, Any]], *, key: str, updated: Sequence[str]) -> None:
        statement = insert(self.engine, table)
        new = {name: statement.excluded[name] for name in updated}
        with self.writing() as connection:
            if rows:
                connection.execute(statement.on_conflict_do_update(index_elements=[key], set_=new), rows)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """The database as it is at one moment; what it refuses is a UserError."""
        with trouble(self.database), reading(self.engine) as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A change beside which nobody else writes: durable at the end, or undone; what is refused is a UserError."""
        with trouble(self.database), writing(self.engine) as connection:
            yield connection


def open_existing(url: str, writer: str) -> Store:
    """The store at a URL. UserError where there is none; `writer` is the command that makes one."""
    if not store_exists(url):
        raise UserError(f"no store at {url.removeprefix('sqlite:///')}: give the one that `{writer}` wrote")
    return Store(url)
