"""The layouts that the annotation store has had, and how one becomes the next: alembic's revisions, run at opening a store."""

import threading

import sqlalchemy as sa

ONE_AT_A_TIME = threading.Lock()  # alembic's `op` and `context` belong to the whole process


def migrate(connection: sa.Connection, layout: int | None, to: str = "head") -> None:
    """Bring the tables from a layout (None: there is nothing yet) to another, in the caller's transaction."""
    from alembic import command
    from alembic.config import Config

    from mmrlhf.store.tables import VERSION_TABLE

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "mmrlhf.store:migrations")
    with ONE_AT_A_TIME:
        if layout is not None and VERSION_TABLE not in sa.inspect(connection).get_table_names():
            command.stamp(config, str(layout))  # the first stores were made without alembic
        command.upgrade(config, to)
