"""Alembic's side of `cluster.store`: it is handed an open connection, so that a failure leaves nothing half done."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], target_metadata=None)
context.run_migrations()
