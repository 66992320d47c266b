"""The database under the store: its schema, and transactions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from enum import IntEnum

from sqlalchemy import Engine, func, select
from sqlalchemy.exc import InternalError, OperationalError, TimeoutError
from sqlalchemy.orm import Session

from tandem.serve.errors import NoAnswerError
from tandem.serve.store import migrations
from tandem.serve.store.connections import WRITES, open_engine
from tandem.serve.store.tables import JobRow, LogRow, ModelRow

logger = logging.getLogger(__name__)


class UnknownCursorError(LookupError):
    """The item after which a page should begin doesn't exist."""


class Lock(IntEnum):
    """What only one transaction may do at a time. Any numbers that no other program locks in the same PostgreSQL."""

    SCHEMA = 0x7A4DE3
    ACCEPT_JOBS = 0x7A4DE4


class Database:
    """Transactions on the store's tables. Opening it migrates a database of an earlier release.

    Write transactions lock rows before they change them, a model's row always before rows of its jobs, so that they
    can't deadlock. SQLite has one writer at a time: its write transactions take the write lock when they begin.
    Rows that a transaction hands out are plain values afterwards; nothing is loaded behind the caller's back.

    `clock` gives the time, aware of its time zone. Raises ValueError for a URL that can't be a store, NewerStoreError
    for a database of a later release. Every method raises NoAnswerError when the database doesn't answer.
    """

    def __init__(self, url: str, clock: Callable[[], datetime] = lambda: datetime.now(UTC)):
        self._clock = clock
        self._engine = open_engine(url)
        self._writer = self._engine.execution_options(**{WRITES: True})
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the pooled connections."""
        self._engine.dispose()

    def now(self) -> datetime:
        """Return the time of the store's clock."""
        return self._clock()

    def read(self) -> AbstractContextManager[Session]:
        """Open a transaction that only reads."""
        return _transaction(self._engine)

    def write(self) -> AbstractContextManager[Session]:
        """Open a transaction that may write. It is committed at the end of the block."""
        return _transaction(self._writer)

    @staticmethod
    def lock(session: Session, lock: Lock) -> None:
        """Wait until no other transaction holds the lock, and hold it until this transaction ends."""
        if session.get_bind().dialect.name == "postgresql":  # in SQLite, a write transaction is alone anyway
            session.execute(select(func.pg_advisory_xact_lock(lock.value)))

    # The names by which the tables that inherit from this class call them.
    _read, _write, _lock = read, write, lock

    def _migrate(self) -> None:
        with self._read() as session:
            if migrations.revision(session.connection()) == migrations.HEAD:
                return
        with Session(self._writer) as session, session.begin():
            self._lock(session, Lock.SCHEMA)
            migrations.upgrade(session.connection())


@contextmanager
def _transaction(engine: Engine) -> Iterator[Session]:
    try:
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session
    except (OperationalError, InternalError, TimeoutError) as error:  # internal: an idle transaction that was ended
        logger.warning("The store doesn't answer: %s", getattr(error, "orig", error))
        raise NoAnswerError from error


def position(session: Session, table: type[ModelRow | JobRow | LogRow], cursor: str) -> int:
    """Return the number of the row after which a page begins. Raises UnknownCursorError."""
    number = session.scalar(select(table.number).where(table.id == cursor))
    if number is None:
        raise UnknownCursorError(cursor)
    return number
