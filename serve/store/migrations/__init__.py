"""The schema of the store's database, and its migrations by alembic, in `versions/`.

A change of `tables.py` needs a migration: a file in `versions/` whose revision begins with the next number, and HEAD
here. Processes of the previous release may still be running, so a migration adds to the schema and removes nothing.
"""

from __future__ import annotations

from sqlalchemy import Connection, column, inspect, literal_column, select, table, update

HEAD = "0013_tinker"
"""The newest revision, written here so that opening a current database doesn't import alembic."""
FIRST = "0001_initial"
LAST_OF_DEVELOPMENT = "0003"
"""The last revision of the development versions before the first release. Its tables are those of FIRST."""
UNRELEASED = ("0001", "0002")
"""Earlier revisions of development versions."""


class SchemaError(RuntimeError):
    """The database has a schema that this release can't use."""


def revision(connection: Connection) -> str | None:
    """Return the database's revision, None before its first migration."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(select(literal_column("version_num")).select_from(table("alembic_version")))
    return found


def check(connection: Connection) -> str | None:
    """Return the database's revision as `revision` does, and change nothing. Raises SchemaError if it can't be used."""
    found = revision(connection)
    if found == LAST_OF_DEVELOPMENT:
        return found
    if found in UNRELEASED or (found is None and inspect(connection).has_table("jobs")):
        raise SchemaError(
            "The store's database was made by a development version before the first release and can't be migrated. "
            "Move it away, or set another store_url."
        )
    if found is not None and found > HEAD:
        raise SchemaError(
            f"The store's database has schema {found}, made by a later release of Tandem; this release supports "
            f"schemas up to {HEAD}. Install the later release, or set another store_url."
        )
    return found


def upgrade(connection: Connection) -> None:
    """Migrate a database, new or old, in the connection's transaction, which must keep other processes out.

    Raises SchemaError.
    """
    if check(connection) == LAST_OF_DEVELOPMENT:
        connection.execute(update(table("alembic_version", column("version_num"))).values(version_num=FIRST))
    from alembic import command  # takes half a second
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "tandem.serve.store:migrations")
    command.upgrade(config, HEAD)
