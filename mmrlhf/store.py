"""The annotation record: an append-only SQLite file that survives a kill at any instant.

A vote is acknowledged after its commit, with WAL and synchronous=FULL. Nothing is ever changed: a changed mind is a new row
that supersedes the older one of the same annotator on the same task; a skip after a vote withdraws it.
"""

import contextlib
import dataclasses
import json
import math
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from mmrlhf.errors import UserError
from mmrlhf.store_rows import (
    Answer,
    Item,
    Judgement,
    Progress,
    Task,
    answer_row,
    judgement_of,
    judgement_row,
    preference_of,
    preference_row,
    refuse_another_vote,
    task_of,
)
from mmrlhf.store_tables import (
    IS_CURRENT,
    ITEMS,
    LEASES,
    SETTINGS,
    TASKS,
    VOTES,
    check_file,
    damaged,
    make_tables,
    open_engine,
    store_path,
    switch_to_wal,
    unusable,
)
from mmrlhf.types import Preference

__all__ = ["Answer", "Item", "Judgement", "Preference", "Progress", "Store", "Task"]

LEASE_SECONDS = 900.0


class Store:
    """One SQLite file, shared by any number of threads and processes of one machine.

    `url` is `sqlite:///FILE` or a path; missing folders are made. UserError where the file is none of ours, or damaged.
    """

    def __init__(self, url: str) -> None:
        self.path = store_path(url)
        check_file(self.path)
        switch_to_wal(self.path)
        self.engine = open_engine(self.path)
        with self._errors():
            make_tables(self.engine)

    def add_items(self, items: Mapping[str, tuple[str | Path, str]]) -> None:
        """Register pictures by content hash as (path, prompt); a newer path replaces the older one."""
        rows = [{"hash": key, "path": str(path), "prompt": prompt} for key, (path, prompt) in items.items()]
        statement = insert(ITEMS)
        new = {"path": statement.excluded.path, "prompt": statement.excluded.prompt}
        with self._writing() as connection:
            if rows:
                connection.execute(statement.on_conflict_do_update(index_elements=["hash"], set_=new), rows)

    def items(self) -> dict[str, Item]:
        """Every registered picture, by content hash."""
        with self._reading() as connection:
            return {row.hash: Item(row.hash, row.path, row.prompt) for row in connection.execute(sa.select(ITEMS))}

    def item(self, key: str) -> Item | None:
        """One registered picture, or None."""
        with self._reading() as connection:
            row = connection.execute(sa.select(ITEMS).where(ITEMS.c.hash == key)).first()
        return None if row is None else Item(row.hash, row.path, row.prompt)

    def add_tasks(self, tasks: Sequence[Task]) -> None:
        """Queue questions; one that is there already (in either order of its items) takes the new priority and reason."""
        for task in tasks:
            if not task.item_0 or task.item_0 == task.item_1 or not math.isfinite(task.priority):
                raise UserError(f"{task} is no question: give two different items, or one, and a finite priority")
        rows = [{"key": task.key, **dataclasses.asdict(task)} for task in tasks]
        statement = insert(TASKS)
        new = {"priority": statement.excluded.priority, "why": statement.excluded.why}
        with self._writing() as connection:
            if rows:
                connection.execute(statement.on_conflict_do_update(index_elements=["key"], set_=new), rows)

    def task(self, key: str) -> Task | None:
        """The queued question of this key, or None."""
        with self._reading() as connection:
            row = connection.execute(sa.select(TASKS).where(TASKS.c.key == key)).first()
        return None if row is None else task_of(row)

    def next_task(self, annotator: str, overlap: int = 1, *, single: bool = False) -> Task | None:
        """The question that this annotator should answer now, leased to them; see `next_tasks`."""
        tasks = self.next_tasks(annotator, overlap, 1, single=single)
        return tasks[0] if tasks else None

    def next_tasks(
        self, annotator: str, overlap: int = 1, count: int = 2, *, single: bool = False, lease: float = LEASE_SECONDS
    ) -> list[Task]:
        """Up to `count` questions for this annotator, first the one to answer now; asking again gives the same.

        None that they voted on or skipped, and none on which `overlap` others voted or hold a lease, which ends after
        `lease` seconds. `single` asks for tasks of one item.
        """
        now = time.time()
        held = sa.select(LEASES.c.since).where(LEASES.c.task == TASKS.c.key, LEASES.c.annotator == annotator)
        mine_first = held.where(LEASES.c.expires > now).scalar_subquery().asc().nulls_last()
        query = (
            sa.select(TASKS)
            .where(is_single(single), *open_to(annotator, overlap, now))
            .order_by(mine_first, TASKS.c.priority.desc(), TASKS.c.number)
        )
        with self._writing() as connection:
            connection.execute(LEASES.delete().where(LEASES.c.expires <= now))
            rows = connection.execute(query.limit(count)).all()
            for place, row in enumerate(rows):  # `since` keeps the order of the queue among those leased together
                values = {"task": row.key, "annotator": annotator, "since": now + place * 1e-3, "expires": now + lease}
                statement = insert(LEASES).values(values)
                renewed = {"expires": now + lease}
                connection.execute(statement.on_conflict_do_update(index_elements=["task", "annotator"], set_=renewed))
        return [task_of(row) for row in rows]

    def waiting(self, overlap: int = 1, *, single: bool = False) -> set[str]:
        """The keys of the questions that lack votes and are not given up: nobody passed on them, or someone has them now.

        A question that was passed on is offered to the other raters when their pages ask next; it waits again from then on.
        """
        passed = sa.exists().where(VOTES.c.task == TASKS.c.key, VOTES.c.kind == "skip", IS_CURRENT)
        held = sa.exists().where(LEASES.c.task == TASKS.c.key, LEASES.c.expires > time.time())
        query = sa.select(TASKS.c.key).where(is_single(single), votes_on_task() < overlap, ~passed | held)
        with self._reading() as connection:
            return set(connection.execute(query).scalars())

    def progress(self, annotator: str = "", overlap: int = 1, *, single: bool = False) -> Progress:
        """How far the queue is, and how far one annotator is in it."""
        tasks = sa.select(sa.func.count()).select_from(TASKS).where(is_single(single))
        mine = sa.exists().where(VOTES.c.task == TASKS.c.key, VOTES.c.annotator == annotator, IS_CURRENT)
        voted, skipped = mine.where(VOTES.c.kind != "skip"), mine.where(VOTES.c.kind == "skip")
        conditions: list[list[Any]] = [[], [votes_on_task() >= overlap], [voted], [skipped]]
        conditions.append(open_to(annotator, overlap, time.time()))
        with self._reading() as connection:
            return Progress(*(connection.execute(tasks.where(*condition)).scalar_one() for condition in conditions))

    def answers(self, annotator: str, before: int | None = None, limit: int = 1) -> list[Answer]:
        """This annotator's current answers to queued tasks, the newest first; `before` is the number of one already seen."""
        query = sa.select(VOTES.c.number.label("vote"), VOTES.c.kind, VOTES.c.value, VOTES.c.extra, TASKS)
        query = query.join(TASKS, TASKS.c.key == VOTES.c.task).where(VOTES.c.annotator == annotator, IS_CURRENT)
        if before is not None:
            query = query.where(VOTES.c.number < before)
        with self._reading() as connection:
            rows = connection.execute(query.order_by(VOTES.c.number.desc()).limit(limit)).all()
        return [Answer(row.vote, task_of(row), row.kind, row.value, json.loads(row.extra)) for row in rows]

    def add(self, preference: Preference) -> bool:
        """Record one preference; returns after the commit. False where this `vote_id` is recorded already."""
        return self.add_many([preference]) == 1

    def add_many(self, preferences: Iterable[Preference]) -> int:
        """Record several in one transaction, all or none; returns how many are new."""
        return self._append([preference_row(preference) for preference in preferences])

    def add_judgement(self, judgement: Judgement) -> bool:
        """Record the score of one item; as `add`."""
        return self._append([judgement_row(judgement)]) == 1

    def skip(self, task: Task, annotator: str, vote_id: str = "", seconds: float = 0.0, when: str = "") -> bool:
        """Record that an annotator passes on a task, which withdraws an earlier vote of theirs; as `add`."""
        items = tuple(filter(None, (task.item_0, task.item_1)))
        return (
            self._append([answer_row("skip", task.prompt, items, None, annotator, "human", seconds, when, vote_id)])
            == 1
        )

    def preferences(self, include_superseded: bool = False) -> list[Preference]:
        """The preferences in the order in which they came; without `include_superseded`, the current ones only."""
        return [preference_of(row) for row in self._votes("pair", include_superseded)]

    def judgements(self, include_superseded: bool = False) -> list[Judgement]:
        """The scores of single items; as `preferences`."""
        return [judgement_of(row) for row in self._votes("score", include_superseded)]

    def count(self, kind: Literal["pair", "score"] = "pair") -> int:
        """How many current preferences, or scores, there are."""
        query = sa.select(sa.func.count()).select_from(VOTES).where(VOTES.c.kind == kind, IS_CURRENT)
        with self._reading() as connection:
            return connection.execute(query).scalar_one()

    def secret(self) -> bytes:
        """32 random bytes made once for this file, to sign what raters' browsers keep."""
        with self._writing() as connection:
            fresh = insert(SETTINGS).values(name="secret", value=secrets.token_hex(32))
            connection.execute(fresh.on_conflict_do_nothing())
            query = sa.select(SETTINGS.c.value).where(SETTINGS.c.name == "secret")
            return bytes.fromhex(connection.execute(query).scalar_one())

    def close(self) -> None:
        """Let go of the file. Everything is on disk before, too."""
        self.engine.dispose()

    def _votes(self, kind: str, include_superseded: bool) -> Sequence[Any]:
        query = sa.select(VOTES).where(VOTES.c.kind == kind).order_by(VOTES.c.number)
        with self._reading() as connection:
            return connection.execute(query if include_superseded else query.where(IS_CURRENT)).all()

    def _append(self, rows: list[dict[str, Any]]) -> int:
        new = 0
        with self._writing() as connection:
            for row in rows:
                done = connection.execute(insert(VOTES).values(row).on_conflict_do_nothing(index_elements=["vote_id"]))
                if done.rowcount:
                    new += 1
                    lease = (LEASES.c.task == row["task"], LEASES.c.annotator == row["annotator"])
                    connection.execute(LEASES.delete().where(*lease))
                else:
                    refuse_another_vote(connection, row)
        return new

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._errors(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with self._errors(), self.engine.connect().execution_options(immediate=True) as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except UnicodeEncodeError as error:
            raise UserError(f"a text cannot be stored ({error}): give valid Unicode") from error
        except sa.exc.OperationalError as error:
            raise UserError(unusable(self.path, str(error.orig))) from error
        except sa.exc.DatabaseError as error:
            raise UserError(damaged(self.path, str(error.orig))) from error


def is_single(single: bool) -> sa.ColumnElement[bool]:
    """Whether a task asks about one item, or about two."""
    return TASKS.c.item_1 == "" if single else TASKS.c.item_1 != ""


def votes_on_task() -> sa.ScalarSelect[int]:
    """How many annotators have a current vote on a task."""
    query = sa.select(sa.func.count()).select_from(VOTES)
    return query.where(VOTES.c.task == TASKS.c.key, VOTES.c.kind != "skip", IS_CURRENT).scalar_subquery()


def open_to(annotator: str, overlap: int, now: float) -> list[sa.ColumnElement[bool]]:
    """Conditions on a task: not answered by this annotator, and room left beside the others' votes and leases."""
    answered = sa.exists().where(VOTES.c.task == TASKS.c.key, VOTES.c.annotator == annotator)
    leases = sa.select(sa.func.count()).select_from(LEASES).where(LEASES.c.task == TASKS.c.key)
    others = leases.where(LEASES.c.annotator != annotator, LEASES.c.expires > now).scalar_subquery()
    return [~answered, votes_on_task() + others < overlap]
