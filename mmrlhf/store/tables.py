"""The tables of the annotation store, the same in SQLite and PostgreSQL; their older layouts are in `migrations`."""

import sqlalchemy as sa

LAYOUT = 3  # the newest revision in `migrations`
VERSION_TABLE = "mmrlhf_layout"

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # in SQLite only INTEGER counts by itself
METADATA = sa.MetaData()
ITEMS = sa.Table(
    "items",
    METADATA,
    sa.Column("hash", sa.Text, primary_key=True),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("prompt", sa.Text, nullable=False),
)
TASKS = sa.Table(
    "tasks",
    METADATA,
    sa.Column("number", NUMBER, primary_key=True),
    sa.Column("key", sa.Text, nullable=False, unique=True),
    sa.Column("kind", sa.Text, nullable=False),  # of the answer that is asked for
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("items", sa.Text, nullable=False),  # JSON list
    sa.Column("text", sa.Text, nullable=False, server_default=""),  # a model's answer that is judged, if it is one
    sa.Column("criteria", sa.Text, nullable=False, server_default="[]"),  # JSON list
    sa.Column("priority", sa.Float, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Index("tasks_by_priority", "kind", sa.text("priority DESC"), "number"),
)
VOTES = sa.Table(
    "votes",
    METADATA,
    sa.Column("number", NUMBER, primary_key=True),
    sa.Column("vote_id", sa.Text, unique=True),  # NULL where the writer gave none: any number of those
    sa.Column("kind", sa.Text, nullable=False),  # that of a task, or skip
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("items", sa.Text, nullable=False),  # JSON list
    sa.Column("text", sa.Text, nullable=False, server_default=""),
    sa.Column("value", sa.Text),  # JSON, of a form for each kind; NULL for a skip
    sa.Column("unsafe", sa.Text, nullable=False, server_default="[]"),  # JSON list: the vetoed among the items
    sa.Column("annotator", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("shown", sa.Text, nullable=False),  # JSON list
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("time", sa.Text, nullable=False),
    sa.Column("extra", sa.Text, nullable=False),  # JSON object
    sa.Column("app_version", sa.Text, nullable=False, server_default=""),
    sa.Index("votes_by_task", "task", "annotator", "number"),
    sa.Index("votes_by_annotator", "annotator", "number"),
)
LEASES = sa.Table(
    "leases",
    METADATA,
    sa.Column("task", sa.Text, primary_key=True),
    sa.Column("annotator", sa.Text, primary_key=True),
    sa.Column("since", sa.Float, nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
)
SETTINGS = sa.Table(
    "settings", METADATA, sa.Column("name", sa.Text, primary_key=True), sa.Column("value", sa.Text, nullable=False)
)
ACCOUNTS = sa.Table(
    "accounts",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("secret", sa.Text, nullable=False),  # a salted hash; see accounts.py
    sa.Column("created", sa.Text, nullable=False),
)
CHECKS = sa.Table(  # the questions whose answer is known: votes on them are about the rater, not about the items
    "checks",
    METADATA,
    sa.Column("task", sa.Text, primary_key=True),
    sa.Column("expected", sa.Text, nullable=False),  # JSON
)
LAYOUTS = sa.Table(VERSION_TABLE, METADATA, sa.Column("version_num", sa.String(32), primary_key=True))  # alembic's own

LATER = VOTES.alias("later")
# the newest answer of each annotator to each task
IS_CURRENT = ~(
    sa.exists()
    .where(LATER.c.task == VOTES.c.task, LATER.c.annotator == VOTES.c.annotator, LATER.c.number > VOTES.c.number)
    .correlate(VOTES)
)
ON_CHECK = (
    sa.exists().where(CHECKS.c.task == VOTES.c.task).correlate(VOTES)
)  # an answer to a question whose answer is known
