"""A store's database by its URL: opened, and brought to the newest layout in one transaction."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from mmrlhf.errors import UserError
from mmrlhf.store.postgres import SCHEMES, PostgreSQL, open_postgres, shown_url
from mmrlhf.store.sqlite import SQLite, open_sqlite, store_path, wrong_layout
from mmrlhf.store.tables import LAYOUT, LAYOUTS, METADATA

INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


@runtime_checkable
class Database(Protocol):
    """What SQLite and PostgreSQL do differently."""

    @property
    def name(self) -> str:
        """What messages call it; no secrets in it."""
        ...

    @property
    def path(self) -> Path | None:
        """The file, if it is one."""
        ...

    @property
    def engine(self) -> sa.Engine:
        """Connections with the option `immediate` write, one at a time."""
        ...

    def layout(self, connection: sa.Connection) -> int:
        """The number of its layout, 0 where nothing is there yet. UserError where the tables are none of ours."""
        ...

    def mark(self, connection: sa.Connection) -> None:
        """Say in the database, beside alembic's table, that it is a store of the newest layout."""
        ...

    def trouble(self, error: sa.exc.DBAPIError) -> str:
        """The message for what the database refuses."""
        ...


def open_database(url: str) -> Database:
    """The database of a store, made or brought to the newest layout. UserError where it cannot be."""
    database: SQLite | PostgreSQL = open_postgres(url) if is_postgres(url) else open_sqlite(url)
    try:
        with trouble(database), writing(database.engine) as connection:
            prepare(database, connection)
    except BaseException:
        database.engine.dispose()
        raise
    return database


def prepare(database: Database, connection: sa.Connection) -> None:
    """Make the tables, or upgrade them; the caller's transaction holds off every other writer."""
    layout = database.layout(connection)
    if not 0 <= layout <= LAYOUT:
        raise UserError(wrong_layout(database.name, layout))
    if layout == LAYOUT:
        return
    if layout:
        from mmrlhf.store.migrations import migrate  # imports alembic

        migrate(connection, layout)
    else:
        METADATA.create_all(connection)
        connection.execute(LAYOUTS.insert().values(version_num=str(LAYOUT)))
    database.mark(connection)


def is_postgres(url: str) -> bool:
    """Whether a URL names a PostgreSQL database."""
    return url.partition("://")[0] in SCHEMES and "://" in url


def store_name(url: str) -> str:
    """What a URL names, for messages and files: without a password."""
    return shown_url(sa.make_url(url)) if is_postgres(url) else url.removeprefix("sqlite:///")


def store_exists(url: str) -> bool:
    """Whether there is a file at a store's URL; a PostgreSQL server is asked when the store is opened, so True."""
    return is_postgres(url) or store_path(url).is_file()


def insert(engine: sa.Engine, table: sa.Table) -> Any:
    """An INSERT that knows ON CONFLICT, which SQL's standard does not."""
    return INSERTS[engine.dialect.name](table)


@contextlib.contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that sees the store as it was at one moment."""
    with engine.connect() as connection, connection.begin():
        yield connection


@contextlib.contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction beside which nobody else writes; committed and durable at the end, or undone."""
    with engine.connect().execution_options(immediate=True) as connection, connection.begin():
        yield connection


@contextlib.contextmanager
def trouble(database: Database) -> Iterator[None]:
    """Turns what a database refuses into a UserError."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise UserError(f"a text cannot be stored ({error}): give valid Unicode") from error
    except sa.exc.DBAPIError as error:
        raise UserError(database.trouble(error)) from error
