"""Connections to the store's database: SQLite by default, PostgreSQL by URL."""

from __future__ import annotations

import json
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from tandem.cluster.sqlite_urls import sqlite_path

LOCK_TIMEOUT_S = 30
WRITES = "tandem_writes"
"""Execution option of engines whose transactions write."""

_POSTGRES = {
    "connect_timeout": "10",
    # These detect a lost server, and release the locks of a process that stops in the middle of a transaction.
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "options": f"-c lock_timeout={LOCK_TIMEOUT_S}s -c idle_in_transaction_session_timeout=60s",
}


def open_engine(url: str) -> Engine:
    """Return the engine of a `store_url`. Options in the URL, like `?connect_timeout=3`, override the defaults here.

    Raises ValueError for a URL that can't be a store.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: the port isn't a number
        raise ValueError("store_url isn't a URL. Write sqlite:////path/to/file.db or postgresql://...") from None
    # NaN isn't JSON, and PostgreSQL rejects it: fail where it is written. Parameters are user data and aren't logged.
    options: dict[str, Any] = {"json_serializer": partial(json.dumps, allow_nan=False), "hide_parameters": True}
    match parsed.drivername.split("+")[0]:
        case "sqlite":
            return _open_sqlite(parsed, sqlite_path(url), options)
        case "postgresql" | "postgres":
            return _open_postgres(parsed, options)
    raise ValueError(
        f"store_url names {parsed.drivername}; the store must be sqlite:////path/to/file.db or postgresql://..."
    )


def _open_postgres(url: URL, options: dict[str, Any]) -> Engine:
    url = url.set(drivername="postgresql+psycopg", query={**_POSTGRES, **url.query})
    try:
        from tandem.serve.store.postgres import limit_waiting

        engine = create_engine(url, pool_pre_ping=True, isolation_level="READ COMMITTED", **options)
    except ModuleNotFoundError as error:
        raise ValueError("A store on PostgreSQL needs the extra `postgres`: pip install '.[postgres]'.") from error
    limit_waiting(engine)
    return engine


def _open_sqlite(url: URL, file: str | None, options: dict[str, Any]) -> Engine:
    if not file or file == ":memory:":
        raise ValueError(
            "store_url names no file, but several processes share the store. Write sqlite:////path/to/file.db."
        )
    path = Path(file).expanduser()
    if not path.is_absolute():
        raise ValueError(
            f"store_url names the relative path {file!r}, which depends on each process's working directory. "
            "Write an absolute path, after four slashes: sqlite:////path/to/file.db."
        )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)  # SQLite gives the files beside it the same mode
    except OSError as error:
        raise ValueError(
            f"store_url names a file in {path.parent}, which can't be created: {error.strerror}."
        ) from error
    url = url.set(database=str(path), query={"timeout": str(LOCK_TIMEOUT_S), **url.query})
    engine = create_engine(url, **options)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver would begin transactions by itself, too late
    cursor = connection.cursor()
    _use_wal(cursor)
    cursor.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _use_wal(cursor: sqlite3.Cursor) -> None:
    """Retry: if processes open a new file together, SQLite fails here instead of waiting for the lock."""
    give_up = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
