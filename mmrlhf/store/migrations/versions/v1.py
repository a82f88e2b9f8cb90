"""The first layout: pairs and scores."""

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def upgrade() -> None:
    op.create_table("items", sa.Column("hash", sa.Text, primary_key=True), text("path"), text("prompt"))
    op.create_table(
        "tasks",
        sa.Column("number", NUMBER, primary_key=True),
        sa.Column("key", sa.Text, nullable=False, unique=True),
        *map(text, ("prompt", "item_0", "item_1")),
        sa.Column("priority", sa.Float, nullable=False),
        text("why"),
    )
    op.create_index("tasks_by_priority", "tasks", [sa.text("priority DESC"), "number"])
    op.create_table(
        "votes",
        sa.Column("number", NUMBER, primary_key=True),
        sa.Column("vote_id", sa.Text, unique=True),
        *map(text, ("kind", "task", "prompt", "items")),
        sa.Column("value", sa.Float),
        *map(text, ("annotator", "source", "shown")),
        sa.Column("seconds", sa.Float, nullable=False),
        *map(text, ("time", "extra")),
    )
    op.create_index("votes_by_task", "votes", ["task", "annotator", "number"])
    op.create_index("votes_by_annotator", "votes", ["annotator", "number"])
    op.create_table(
        "leases",
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("annotator", sa.Text, primary_key=True),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
    )
    op.create_table("settings", sa.Column("name", sa.Text, primary_key=True), text("value"))
