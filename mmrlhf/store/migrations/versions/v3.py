"""The third layout: raters' accounts, and what is expected of check questions."""

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"


def text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def upgrade() -> None:
    op.create_table("accounts", sa.Column("name", sa.Text, primary_key=True), *map(text, ("secret", "created")))
    op.create_table("checks", sa.Column("task", sa.Text, primary_key=True), text("expected"))
