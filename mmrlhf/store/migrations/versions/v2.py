"""The second layout: tasks of any kind, number of items and text; values as JSON; vetoes; the software's version."""

import json

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"

TASKS = sa.table("tasks", *map(sa.column, ("number", "kind", "item_0", "item_1", "items")))
VOTES = sa.table("votes", *map(sa.column, ("number", "value", "json_value")))


def upgrade() -> None:
    op.drop_index("tasks_by_priority", "tasks")
    with op.batch_alter_table("tasks") as batch:
        batch.add_column(sa.Column("kind", sa.Text))
        batch.add_column(sa.Column("items", sa.Text))
        batch.add_column(sa.Column("text", sa.Text, nullable=False, server_default=""))
        batch.add_column(sa.Column("criteria", sa.Text, nullable=False, server_default="[]"))
    fill_tasks(op.get_bind())
    with op.batch_alter_table("tasks") as batch:
        batch.alter_column("kind", existing_type=sa.Text(), nullable=False)
        batch.alter_column("items", existing_type=sa.Text(), nullable=False)
        batch.drop_column("item_0")
        batch.drop_column("item_1")
    op.create_index("tasks_by_priority", "tasks", ["kind", sa.text("priority DESC"), "number"])
    with op.batch_alter_table("votes") as batch:
        batch.add_column(sa.Column("json_value", sa.Text))
        batch.add_column(sa.Column("text", sa.Text, nullable=False, server_default=""))
        batch.add_column(sa.Column("unsafe", sa.Text, nullable=False, server_default="[]"))
        batch.add_column(sa.Column("app_version", sa.Text, nullable=False, server_default=""))
    fill_votes(op.get_bind())
    with op.batch_alter_table("votes") as batch:
        batch.drop_column("value")
    with op.batch_alter_table("votes") as batch:
        batch.alter_column("json_value", new_column_name="value", existing_type=sa.Text())


def fill_tasks(connection: sa.Connection) -> None:
    """One item is a score, two are a pair."""
    rows = [
        {
            "task": number,
            "new_kind": "pair" if second else "score",
            "new": json.dumps([first, second] if second else [first]),
        }
        for number, first, second in connection.execute(sa.select(TASKS.c.number, TASKS.c.item_0, TASKS.c.item_1))
    ]
    change = TASKS.update().where(TASKS.c.number == sa.bindparam("task", type_=sa.BigInteger))
    text, kind = sa.bindparam("new", type_=sa.Text), sa.bindparam("new_kind", type_=sa.Text)
    if rows:
        connection.execute(change.values(items=text, kind=kind), rows)


def fill_votes(connection: sa.Connection) -> None:
    """Numbers as JSON, written by Python: it gives back the same float, which SQL's casts do not promise."""
    found = connection.execute(sa.select(VOTES.c.number, VOTES.c.value).where(VOTES.c.value.is_not(None)))
    rows = [{"vote": number, "new": json.dumps(float(value))} for number, value in found]
    change = VOTES.update().where(VOTES.c.number == sa.bindparam("vote", type_=sa.BigInteger))
    if rows:
        connection.execute(change.values(json_value=sa.bindparam("new", type_=sa.Text)), rows)
