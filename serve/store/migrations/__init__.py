"""The schema of the store's database, and how an older one becomes it: alembic's migrations, in `versions/`.

A change of `tables.py` comes with a migration: a file in `versions/`, numbered in order, and its number here as HEAD.
Processes of the release before may still be at work, so a migration adds and doesn't take away.
"""

from __future__ import annotations

from sqlalchemy import Connection, inspect, literal_column, select, table

HEAD = "0003"
"""The newest revision; written here so that nobody has to import alembic to see that there is nothing to do."""


class NewerStoreError(RuntimeError):
    """A later release has migrated the database, and this one doesn't know its schema."""


def revision(connection: Connection) -> str | None:
    """The number of the last migration of a database, None before the first one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.scalar(select(literal_column("version_num")).select_from(table("alembic_version")))


def upgrade(connection: Connection) -> None:
    """Migrates a database, new or old, in the connection's transaction, which must keep other processes out.

    Raises NewerStoreError.
    """
    if (found := revision(connection) or "") > HEAD:
        raise NewerStoreError(
            f"A later release of Tandem has migrated the store's database to schema {found}, and this release knows "
            f"{HEAD} at most. Install that release, or name another store_url."
        )
    from alembic import command  # takes half a second
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "tandem.serve.store:migrations")
    command.upgrade(config, HEAD)
