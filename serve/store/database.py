"""The database under the store: its schema, and transactions."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from enum import IntEnum

from sqlalchemy import ColumnElement, Connection, Engine, func, select
from sqlalchemy.exc import InternalError, OperationalError, TimeoutError
from sqlalchemy.orm import DeclarativeBase, Session

from tandem.serve.errors import NoAnswerError
from tandem.serve.store import migrations
from tandem.serve.store.connections import WRITES, open_engine

logger = logging.getLogger(__name__)


def utc_now() -> datetime:
    return datetime.now(UTC)


class UnknownCursorError(LookupError):
    """The item after which a page should begin doesn't exist."""


class Lock(IntEnum):
    """An action for one transaction at a time. No other program may lock these numbers in the same PostgreSQL."""

    SCHEMA = 0x7A4DE3
    ACCEPT_JOBS = 0x7A4DE4
    NUMBER_ARTIFACTS = 0x7A4DE6
    RECORD_USAGE = 0x7A4DE7
    SET_PRICES = 0x7A4DE8


class Database:
    """Transactions on the store's tables. Opening a database of an earlier release migrates it.

    Write transactions lock rows before they change them, and a model's row before rows of its jobs, so that they can't
    deadlock. SQLite has one writer at a time: its write transactions take the write lock at their start. Rows are plain
    values after their transaction; nothing is loaded later.

    `clock` returns the time with a time zone. Raises ValueError for a URL that can't be a store, SchemaError for a
    schema that this release can't use. Transactions raise NoAnswerError if the database doesn't answer.
    """

    def __init__(self, url: str, clock: Callable[[], datetime]):
        self._clock = clock
        self._watching = threading.Lock()
        self._watcher: sqlite3.Connection | None = None
        self._engine = open_engine(url)
        self._writer = self._engine.execution_options(**{WRITES: True})
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the pooled connections."""
        with self._watching:
            self._stop_watching()
        self._engine.dispose()

    def change_mark(self) -> object | None:
        """Return a value that changes with each commit of any other connection; None if only a query can tell.

        It takes microseconds. A change is seen once it can be read, which the database's files don't show: SQLite syncs
        its write-ahead log before the commit counts.
        """
        if not self.is_local:
            return None
        with self._watching:
            try:
                if self._watcher is None:
                    self._watcher = sqlite3.connect(str(self._engine.url.database), check_same_thread=False)
                return self._watcher.execute("PRAGMA data_version").fetchall()
            except sqlite3.Error:
                self._stop_watching()
                return None

    def _stop_watching(self) -> None:
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    @property
    def is_local(self) -> bool:
        """True for a file of this node, whose readers never wait for a writer."""
        return self._engine.dialect.name == "sqlite"

    def now(self) -> datetime:
        """Return the time of the store's clock."""
        return self._clock()

    def read(self) -> AbstractContextManager[Session]:
        """Open a transaction that only reads."""
        return _transaction(self._engine)

    def quick_read(self) -> AbstractContextManager[Connection]:
        """Open a transaction that only reads, without the ORM, whose rows take three times as long."""
        return _quick_transaction(self._engine)

    def write(self) -> AbstractContextManager[Session]:
        """Open a transaction that may write. It is committed at the end of the block."""
        return _transaction(self._writer)

    @staticmethod
    def lock(session: Session, lock: Lock) -> None:
        """Wait until no other transaction holds the lock, and hold it until this transaction ends."""
        if session.get_bind().dialect.name == "postgresql":  # in SQLite, a write transaction is alone anyway
            session.execute(select(func.pg_advisory_xact_lock(lock.value)))

    def _migrate(self) -> None:
        with self.read() as session:
            if migrations.revision(session.connection()) == migrations.HEAD:
                return
        with Session(self._writer) as session, session.begin():
            self.lock(session, Lock.SCHEMA)
            migrations.upgrade(session.connection())


@contextmanager
def _transaction(engine: Engine) -> Iterator[Session]:
    with _answering(), Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


@contextmanager
def _quick_transaction(engine: Engine) -> Iterator[Connection]:
    with _answering(), engine.begin() as connection:
        yield connection


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except (
        OperationalError,
        InternalError,
        TimeoutError,
    ) as error:  # InternalError: PostgreSQL ended an idle transaction
        logger.warning("The store doesn't answer: %s", getattr(error, "orig", error))
        raise NoAnswerError from error


def position(session: Session, table: type[DeclarativeBase], cursor: str, *visible: ColumnElement[bool]) -> int:
    """Return the number of the row after which a page begins. Raises UnknownCursorError.

    The table has an id and a number. `visible`: conditions on the rows that the caller may know of.
    """
    columns = table.__table__.c
    number: int | None = session.scalar(select(columns.number).where(columns.id == cursor, *visible))
    if number is None:
        raise UnknownCursorError(cursor)
    return number
