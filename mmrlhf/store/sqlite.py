"""A store in one SQLite file: WAL, durable at commit, one writer at a time; and the checks at opening it."""

import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from mmrlhf.errors import UserError
from mmrlhf.store.tables import LAYOUT

APPLICATION_ID = 0x6D6D726C  # "mmrl", in the header of the file
BUSY_MILLISECONDS = 60_000


@dataclass(frozen=True)
class SQLite:
    """An open file; its layout is the `user_version` in its header, so that an older program sees it, too."""

    path: Path
    engine: sa.Engine

    @property
    def name(self) -> str:
        return str(self.path)

    def layout(self, connection: sa.Connection) -> int:
        return connection.exec_driver_sql("PRAGMA user_version").scalar_one()

    def mark(self, connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.exec_driver_sql(f"PRAGMA user_version = {LAYOUT}")

    def trouble(self, error: sa.exc.DBAPIError) -> str:
        busy = isinstance(error, sa.exc.OperationalError)
        return (unusable if busy else damaged)(self.name, str(error.orig))


def open_sqlite(url: str) -> SQLite:
    """The file that a URL names, made where it is missing. UserError where it is none of ours, or damaged."""
    path = store_path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    check_file(path)
    switch_to_wal(path)
    return SQLite(path, open_engine(path))


def store_path(url: str) -> Path:
    """The file that a store's URL names. UserError where it can be none."""
    scheme, separator, rest = url.partition("://")
    if separator and (scheme != "sqlite" or not rest.startswith("/")):
        raise UserError(
            f"got the store '{url}', allowed is sqlite:///FILE, a path or postgresql://USER@HOST/NAME: write "
            "sqlite:///ratings.db"
        )
    name = rest[1:] if separator else url
    if not name or name == ":memory:":
        raise UserError(f"the store '{url}' names no file: write sqlite:///ratings.db")
    path = Path(name)
    if path.is_dir():
        raise UserError(f"the store {path} is a folder: give the path of a file in it, such as {path / 'ratings.db'}")
    return path


def check_file(path: Path) -> None:
    """UserError unless the file is new, or a whole annotation store of this layout or an older one."""
    if path.exists():
        with path.open("rb") as file:
            header = file.read(16)
        if header and header != b"SQLite format 3\0":
            raise UserError(f"{path} is not an annotation store: give another path, or a file made by 'mmrlhf rate'")
    connection = sqlite3.connect(path, timeout=BUSY_MILLISECONDS / 1000, isolation_level=None)
    try:
        connection.execute("BEGIN")  # all of one moment: another process may be making the store
        state = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if state != "ok":
            raise UserError(damaged(str(path), str(state)))
        identity = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    except sqlite3.OperationalError as error:
        raise UserError(unusable(str(path), str(error))) from error
    except sqlite3.DatabaseError as error:
        raise UserError(damaged(str(path), str(error))) from error
    finally:
        connection.close()
    if not empty and identity != APPLICATION_ID:
        raise UserError(f"{path} is another program's database: give another path, or a file made by 'mmrlhf rate'")
    if not empty and not 1 <= version <= LAYOUT:
        raise UserError(wrong_layout(str(path), version))


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


def switch_to_wal(path: Path) -> None:
    """Write-ahead logging, so that readers never wait; SQLite answers 'locked' at once while another process switches."""
    for attempt in range(100):
        connection = sqlite3.connect(path, timeout=BUSY_MILLISECONDS / 1000, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or attempt == 99:
                raise UserError(unusable(str(path), str(error))) from error
            time.sleep(0.05)
        finally:
            connection.close()


def wrong_layout(name: str, layout: int | str) -> str:
    """The message for a store that a newer mmrlhf wrote."""
    return f"{name} has layout {layout}, allowed is 1 to {LAYOUT}: use the mmrlhf that wrote it"


def unusable(name: str, reason: str) -> str:
    """The message for a file that SQLite may not use now: locked for a minute, full disk, no permission."""
    return f"the store {name} cannot be used ({reason}): check its permissions, free the disk, or end what holds it"


def damaged(name: str, reason: str) -> str:
    """The message for a file that SQLite cannot read."""
    reason = " ".join(reason.split())[:120]
    return f"the store {name} is damaged ({reason}): put back a copy, or salvage it with sqlite3's '.recover'"
