"""The database under the store: SQLite by default, PostgreSQL by URL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, inspect, make_url, select
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateColumn

from tandem.serve.errors import Fault, InvalidRequestError
from tandem.serve.tables import JobRow, LogRow, ModelRow, Table

_WRITES = "tandem_writes"


class Lock(IntEnum):
    """What only one transaction may do at a time. Any numbers that no other program locks in the same PostgreSQL."""

    SCHEMA = 0x7A4DE3
    ACCEPT_JOBS = 0x7A4DE4


class Database:
    """Transactions on the store's tables.

    Write transactions lock rows before they change them, a model's row always before rows of its jobs, so that they
    can't deadlock. SQLite has one writer at a time: its write transactions take the write lock when they begin.
    Rows that a transaction hands out are plain values afterwards; nothing is loaded behind the caller's back.

    `clock` gives the time, aware of its time zone.
    """

    def __init__(self, url: str, clock: Callable[[], datetime] = lambda: datetime.now(UTC)):
        self._clock = clock
        self._engine = _open(url)
        self._writer = self._engine.execution_options(**{_WRITES: True})
        self._create_tables()

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Closes the pooled connections."""
        self._engine.dispose()

    @staticmethod
    def _lock_for_transaction(session: Session, lock: Lock) -> None:
        """Waits until no other transaction holds the lock, and holds it until this one ends. On SQLite, a write
        transaction has the whole database to itself anyway."""
        if session.get_bind().dialect.name == "postgresql":
            session.execute(select(func.pg_advisory_xact_lock(lock.value)))

    def _create_tables(self) -> None:
        with self._writer.begin() as connection:
            if connection.dialect.name == "postgresql":  # CREATE TABLE IF NOT EXISTS races there
                connection.execute(select(func.pg_advisory_xact_lock(Lock.SCHEMA.value)))
            Table.metadata.create_all(connection)
            _add_missing_columns(connection)


def _add_missing_columns(connection: Connection) -> None:
    """Brings the tables of an earlier release up to date: later columns are nullable, so old rows need no change."""
    inspector = inspect(connection)
    quote = connection.dialect.identifier_preparer
    for table in Table.metadata.sorted_tables:
        there = {column["name"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                specification = CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {quote.format_table(table)} ADD COLUMN {specification}")


def position(session: Session, table: type[ModelRow | JobRow | LogRow], cursor: str) -> int:
    """Where a page begins: the number of the row that a client named as `after`. Raises InvalidRequestError."""
    number = session.scalar(select(table.number).where(table.id == cursor))
    if number is None:
        raise InvalidRequestError([Fault(("query", "after"), f"{cursor!r} isn't the id of an item of this list")])
    return number


def _open(url: str) -> Engine:
    parsed = make_url(url)
    # NaN isn't JSON, and PostgreSQL refuses it: better to fail where it is written.
    options: dict[str, Any] = {"json_serializer": partial(json.dumps, allow_nan=False)}
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True, **options)
    if parsed.database:
        Path(parsed.database).expanduser().parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, connect_args={"timeout": 30}, **options)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver would begin transactions by itself, and too late
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Any) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
