"""The queue of questions in SQL: which ones an annotator may answer, and which lack votes."""

import sqlalchemy as sa

from mmrlhf.store.tables import IS_CURRENT, LEASES, TASKS, VOTES


def votes_on_task() -> sa.ScalarSelect[int]:
    """How many annotators have a current vote on a task."""
    query = sa.select(sa.func.count()).select_from(VOTES)
    return query.where(VOTES.c.task == TASKS.c.key, VOTES.c.kind != "skip", IS_CURRENT).scalar_subquery()


def open_to(annotator: str, overlap: int, now: float) -> list[sa.ColumnElement[bool]]:
    """Conditions on a task: not answered by this annotator, and room left beside the others' votes and leases."""
    answered = sa.exists().where(VOTES.c.task == TASKS.c.key, VOTES.c.annotator == annotator)
    leases = sa.select(sa.func.count()).select_from(LEASES).where(LEASES.c.task == TASKS.c.key)
    others = leases.where(LEASES.c.annotator != annotator, LEASES.c.expires > now).scalar_subquery()
    return [~answered, votes_on_task() + others < number(overlap)]


def next_query(annotator: str, overlap: int, kind: str, now: float) -> sa.Select:
    """The questions of a kind that are open to this annotator, those leased to them first, then by priority."""
    held = sa.select(LEASES.c.since).where(LEASES.c.task == TASKS.c.key, LEASES.c.annotator == annotator)
    mine_first = held.where(LEASES.c.expires > now).scalar_subquery().asc().nulls_last()
    query = sa.select(TASKS).where(TASKS.c.kind == kind, *open_to(annotator, overlap, now))
    return query.order_by(mine_first, TASKS.c.priority.desc(), TASKS.c.number)


def waiting_query(overlap: int, kind: str, now: float) -> sa.Select:
    """The keys of the questions that lack votes, and that nobody passed on or someone has now."""
    passed = sa.exists().where(VOTES.c.task == TASKS.c.key, VOTES.c.kind == "skip", IS_CURRENT)
    held = sa.exists().where(LEASES.c.task == TASKS.c.key, LEASES.c.expires > now)
    return sa.select(TASKS.c.key).where(TASKS.c.kind == kind, votes_on_task() < number(overlap), ~passed | held)


def progress_queries(annotator: str, overlap: int, kind: str, now: float) -> list[sa.Select]:
    """Counts of tasks, in the order of `Progress`."""
    tasks = sa.select(sa.func.count()).select_from(TASKS).where(TASKS.c.kind == kind)
    mine = sa.exists().where(VOTES.c.task == TASKS.c.key, VOTES.c.annotator == annotator, IS_CURRENT)
    voted, skipped = mine.where(VOTES.c.kind != "skip"), mine.where(VOTES.c.kind == "skip")
    complete = votes_on_task() >= number(overlap)
    return [tasks, *map(tasks.where, (complete, voted, skipped)), tasks.where(*open_to(annotator, overlap, now))]


def number(value: int) -> sa.ColumnElement[int]:
    """A whole number of up to 63 bits: PostgreSQL would take it for one of 31."""
    return sa.literal(value, sa.BigInteger)
