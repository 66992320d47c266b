"""Run by alembic: migrates the connection that `tandem.serve.store.migrations.upgrade` provides."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
