"""A store in a PostgreSQL database: one writer at a time behind an advisory lock, durable at commit.

The lock makes writers see all that was committed before, as SQLite's immediate transactions do; nothing needs to be retried.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from mmrlhf.errors import UserError
from mmrlhf.store.tables import LAYOUTS, METADATA, VERSION_TABLE

SCHEMES = ("postgresql", "postgresql+psycopg")
WRITERS = 0x6D6D726C  # the advisory lock of the database; "mmrl"
WAIT_MILLISECONDS = 60_000


@dataclass(frozen=True)
class PostgreSQL:
    """A reachable database; its layout is in alembic's table of versions."""

    engine: sa.Engine
    path: Path | None = None

    @property
    def name(self) -> str:
        return shown_url(self.engine.url)

    def layout(self, connection: sa.Connection) -> int:
        """UserError where the tables are not ours, or texts would not come out as they went in."""
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
        if encoding != "UTF8":
            raise UserError(f"the database {self.name} has the encoding {encoding}, allowed is UTF8: createdb -E UTF8")
        tables = set(sa.inspect(connection).get_table_names())
        if VERSION_TABLE in tables:
            return int(connection.execute(sa.select(LAYOUTS.c.version_num)).scalar_one())
        if taken := sorted(tables & set(METADATA.tables)):
            raise UserError(
                f"the database {self.name} has another program's {', '.join(taken)}: give an empty database, or a schema "
                "of its own with ?options=-csearch_path%3DNAME"
            )
        return 0

    def mark(self, connection: sa.Connection) -> None:
        """Nothing: the table of versions says it."""

    def trouble(self, error: sa.exc.DBAPIError) -> str:
        reason = " ".join(str(error.orig).split())[:200]
        return f"the store {self.name} cannot be used ({reason}): check the URL, that its server runs, and what its user may do"


def open_postgres(url: str) -> PostgreSQL:
    """The database that a URL names. UserError where the URL is none, or psycopg is missing; it connects at first use."""
    try:
        parsed = sa.engine.make_url(url).set(drivername="postgresql+psycopg")
    except (sa.exc.ArgumentError, ValueError) as error:
        raise UserError(f"the store's URL is none ({error}): write postgresql://USER@HOST/NAME") from error
    try:
        return PostgreSQL(open_engine(parsed))
    except ImportError as error:
        raise UserError(f"a store at postgresql:// needs psycopg ({error}): pip install 'mmrlhf[postgres]'") from error


def open_engine(url: sa.URL) -> sa.Engine:
    """An engine whose writers take turns from the first statement on, and whose readers see one moment."""
    # READ COMMITTED whatever the server's default is: what a writer reads must be newer than its lock
    engine = sa.create_engine(
        url,
        isolation_level="READ COMMITTED",
        connect_args={"client_encoding": "utf8"},
        pool_pre_ping=True,
        pool_size=8,
        max_overflow=32,
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        before, connection.autocommit = connection.autocommit, True  # else a rollback would undo the settings
        connection.execute(f"SET lock_timeout = {WAIT_MILLISECONDS}")
        off = connection.execute("SELECT current_setting('synchronous_commit') = 'off'").fetchone()[0]
        if off:
            connection.execute("SET synchronous_commit = on")
        connection.autocommit = before

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("immediate", False):
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS})")
        else:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

    return engine


def shown_url(url: sa.URL) -> str:
    """A URL without its passwords, for people to read."""
    return url.set(drivername="postgresql").difference_update_query(["password", "sslpassword"]).render_as_string()
