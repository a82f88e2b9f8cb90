"""The file behind the annotation store: its tables, and the checks at opening it."""

import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from mmrlhf.errors import UserError

APPLICATION_ID = 0x6D6D726C  # "mmrl", in the header of the file
SCHEMA_VERSION = 1
BUSY_MILLISECONDS = 60_000

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
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("key", sa.Text, nullable=False, unique=True),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("item_0", sa.Text, nullable=False),
    sa.Column("item_1", sa.Text, nullable=False),
    sa.Column("priority", sa.Float, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Index("tasks_by_priority", sa.text("priority DESC"), "number"),
)
VOTES = sa.Table(
    "votes",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("vote_id", sa.Text, unique=True),  # NULL where the writer gave none: any number of those
    sa.Column("kind", sa.Text, nullable=False),  # pair, score or skip
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("items", sa.Text, nullable=False),  # JSON list
    sa.Column("value", sa.Float),
    sa.Column("annotator", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("shown", sa.Text, nullable=False),  # JSON list
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("time", sa.Text, nullable=False),
    sa.Column("extra", sa.Text, nullable=False),  # JSON object
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
LATER = VOTES.alias("later")
# the newest answer of each annotator to each task
IS_CURRENT = ~(
    sa.exists()
    .where(LATER.c.task == VOTES.c.task, LATER.c.annotator == VOTES.c.annotator, LATER.c.number > VOTES.c.number)
    .correlate(VOTES)
)


def store_path(url: str) -> Path:
    """The file that a store's URL names; its folder is made."""
    scheme, separator, rest = url.partition("://")
    if separator and (scheme != "sqlite" or not rest.startswith("/")):
        raise UserError(f"got the store '{url}', allowed is sqlite:///FILE or a path: write sqlite:///ratings.db")
    name = rest[1:] if separator else url
    if not name or name == ":memory:":
        raise UserError(f"the store '{url}' names no file: write sqlite:///ratings.db")
    path = Path(name)
    if path.is_dir():
        raise UserError(f"the store {path} is a folder: give the path of a file in it, such as {path / 'ratings.db'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        with path.open("rb") as file:
            header = file.read(16)
        if header and header != b"SQLite format 3\0":
            raise UserError(f"{path} is not an annotation store: give another path, or a file made by 'mmrlhf rate'")
    return path


def open_engine(path: Path) -> sa.Engine:
    """An engine whose transactions are SQLite's own: immediate for writers, durable at commit."""
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)), pool_size=8, max_overflow=32)

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN would be deferred
        connection.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
        connection.execute("PRAGMA synchronous = FULL")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def check_file(path: Path) -> None:
    """UserError unless the file is new, or a whole annotation store of this layout."""
    connection = sqlite3.connect(path, timeout=BUSY_MILLISECONDS / 1000)
    try:
        state = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if state != "ok":
            raise UserError(damaged(path, str(state)))
        identity = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    except sqlite3.OperationalError as error:
        raise UserError(unusable(path, str(error))) from error
    except sqlite3.DatabaseError as error:
        raise UserError(damaged(path, str(error))) from error
    finally:
        connection.close()
    if not empty and identity != APPLICATION_ID:
        raise UserError(f"{path} is another program's database: give another path, or a file made by 'mmrlhf rate'")
    if not empty and version != SCHEMA_VERSION:
        raise UserError(f"{path} has layout {version}, allowed is {SCHEMA_VERSION}: use the mmrlhf that wrote it")


def switch_to_wal(path: Path) -> None:
    """Write-ahead logging, so that readers never wait; SQLite answers 'locked' at once while another process switches."""
    for attempt in range(100):
        connection = sqlite3.connect(path, timeout=BUSY_MILLISECONDS / 1000, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or attempt == 99:
                raise UserError(unusable(path, str(error))) from error
            time.sleep(0.05)
        finally:
            connection.close()


def make_tables(engine: sa.Engine) -> None:
    """The tables of a new file and its marks, in one transaction."""
    with engine.connect().execution_options(immediate=True) as connection, connection.begin():
        METADATA.create_all(connection)
        connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")


def unusable(path: Path, reason: str) -> str:
    """The message for a file that SQLite may not use now: locked for a minute, full disk, no permission."""
    return f"the store {path} cannot be used ({reason}): check its permissions, free the disk, or end what holds it"


def damaged(path: Path, reason: str) -> str:
    """The message for a file that SQLite cannot read."""
    reason = " ".join(reason.split())[:120]
    return f"the store {path} is damaged ({reason}): put back a copy, or salvage it with sqlite3's '.recover'"
