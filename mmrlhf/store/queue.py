"""The queue of questions in SQL: which ones an annotator may answer, and which lack votes. Checks are in no queue."""

import sqlalchemy as sa

from mmrlhf.store.tables import CHECKS, IS_CURRENT, LEASES, TASKS, VOTES

IS_CHECK = sa.exists().where(CHECKS.c.task == TASKS.c.key).correlate(TASKS)  # a question whose answer is known


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


def next_queries(annotator: str, overlap: int, kind: str, now: float) -> tuple[sa.Select, sa.Select]:
    """The questions of a kind that are open to this annotator: those leased to them, and the others by priority.

    Two queries, as the second can stop at the first rows that it finds.
    """
    leases = sa.select(LEASES.c.task).where(LEASES.c.annotator == annotator, LEASES.c.expires > now)
    since = (
        sa.select(LEASES.c.since).where(LEASES.c.task == TASKS.c.key, LEASES.c.annotator == annotator).scalar_subquery()
    )
    query = sa.select(TASKS).where(TASKS.c.kind == kind, ~IS_CHECK, *open_to(annotator, overlap, now))
    by_priority = (TASKS.c.priority.desc(), TASKS.c.number)
    held = query.where(TASKS.c.key.in_(leases)).order_by(since, *by_priority)
    return held, query.where(TASKS.c.key.not_in(leases)).order_by(*by_priority)


def waiting_query(overlap: int, kind: str, now: float) -> sa.Select:
    """The keys of the questions that lack votes, and that nobody passed on or someone has now."""
    passed = sa.exists().where(VOTES.c.task == TASKS.c.key, VOTES.c.kind == "skip", IS_CURRENT)
    held = sa.exists().where(LEASES.c.task == TASKS.c.key, LEASES.c.expires > now)
    lacking = (TASKS.c.kind == kind, ~IS_CHECK, votes_on_task() < number(overlap))
    return sa.select(TASKS.c.key).where(*lacking, ~passed | held)


def free_query(overlap: int, kind: str, now: float) -> sa.Select:
    """The questions that lack votes and that nobody has now, by priority; those with a known answer are left out."""
    held = sa.exists().where(LEASES.c.task == TASKS.c.key, LEASES.c.expires > now)
    query = sa.select(TASKS).where(TASKS.c.kind == kind, votes_on_task() < number(overlap), ~held, ~IS_CHECK)
    return query.order_by(TASKS.c.priority.desc(), TASKS.c.number)


def held_query(now: float) -> sa.Select:
    """(kind, how many questions of it somebody has now)."""
    query = sa.select(TASKS.c.kind, sa.func.count(sa.distinct(TASKS.c.key))).join(LEASES, LEASES.c.task == TASKS.c.key)
    return query.where(LEASES.c.expires > now).group_by(TASKS.c.kind)


def number(value: int) -> sa.ColumnElement[int]:
    """A whole number of up to 63 bits: PostgreSQL would take it for one of 31."""
    return sa.literal(value, sa.BigInteger)
