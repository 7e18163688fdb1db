"""Alembic's environment: migrates on the open connection of `cluster.database.schema`, so that a failure rolls back."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], target_metadata=None)
context.run_migrations()
