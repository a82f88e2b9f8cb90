"""What alembic runs to migrate a store: on the connection, and in the transaction, that `migrate` gives it."""

from alembic import context

from mmrlhf.store.tables import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
