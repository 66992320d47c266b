"""URLs of stores, and connection failures, from which the store recovers."""

import os
import signal
import sqlite3
import sys
import time
import uuid

import pytest
from sqlalchemy import create_engine, make_url
from typer.testing import CliRunner

from tandem.cli.main import app
from tandem.serve.errors import UnavailableError
from tandem.serve.store import postgres as postgres_connections
from tandem.serve.store.connections import open_engine
from tandem.serve.store.store import Store

on_both = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)
on_postgres = pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)


@pytest.mark.parametrize(
    "url, reason",
    [
        ("tandem.db", "isn't a URL"),
        ("mysql://user:secret@host/db", "names mysql"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///tandem.db", "absolute path"),
        ("sqlite:////proc/self/nothing/tandem.db", "in /proc/self/nothing, which can't be created"),
    ],
)
def test_a_url_that_cannot_be_a_store_is_refused(url, reason):
    with pytest.raises(ValueError, match=reason) as refused:
        open_engine(url)
    assert "secret" not in str(refused.value)


def test_without_its_driver_postgresql_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[postgres\]'"):
        open_engine("postgresql://host/db")


@pytest.mark.parametrize("name", ["postgres", "postgresql", "postgresql+psycopg"])
@on_postgres
def test_postgresql_goes_by_any_of_its_names(store_url, name):
    url = make_url(store_url).set(drivername=name).render_as_string(hide_password=False)
    store = Store(url)
    assert not store.keys.exist()
    store.close()


def test_a_file_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Store("sqlite:///~/stores/tandem.db").close()
    assert (tmp_path / "stores" / "tandem.db").is_file()


@pytest.mark.parametrize(
    "url, said",
    [
        ("mysql://user:secret@host/db", "store_url names mysql"),
        ("postgresql://user:secret@127.0.0.1:1/db", "The store doesn't answer"),
    ],
)
def test_the_command_line_says_in_a_sentence_what_is_wrong_with_the_store(url, said, tmp_path):
    environment = {"TANDEM_HOME": str(tmp_path), "TANDEM_STORE_URL": url, "COLUMNS": "200"}
    told = CliRunner().invoke(app, ["keys", "list"], env=environment)
    assert told.exit_code == 2
    assert told.output.startswith(said) and "secret" not in told.output


@on_postgres
def test_connections_that_the_server_closed_are_replaced(store_url, store, add_model, postgres):
    """A restart of the server also closes its connections."""
    add_model("before")
    with pytest.raises(UnavailableError, match="doesn't answer"), store.database.write() as session:
        session.connection()
        disconnect_all(postgres, store_url)
        store.models.add("team", "project", "between", "tandem/tiny", False)  # on another connection
        session.connection().exec_driver_sql("SELECT 1")
    disconnect_all(postgres, store_url)
    assert [model.name for model in store.models.page("team")] == ["before", "between"]


@on_postgres
def test_a_process_that_stops_in_a_transaction_does_not_stop_the_others(store_url, store, add_model):
    model = add_model()
    stopped = Store(with_query(store_url, options="-c idle_in_transaction_session_timeout=200ms"))
    with pytest.raises(UnavailableError), stopped.database.write() as session:
        stopped_row = session.get(type(model), model.number, with_for_update=True)
        stopped_row.name = "changed"
        session.flush()
        started = time.monotonic()
        add_job_with(store, model)
        assert time.monotonic() - started < 20, "it waited for the lock of a stopped process"
    stopped.close()
    assert store.models.get(model.id, "team").name == "agent"


@on_both
def test_waiting_for_a_lock_has_an_end(store_url, store, add_model):
    model = add_model()
    query = {"timeout": "0.2"} if "sqlite" in store_url else {"options": "-c lock_timeout=200ms"}
    hurried = Store(with_query(store_url, **query))
    with store.database.write() as session:
        session.get(type(model), model.number, with_for_update=True)
        with pytest.raises(UnavailableError, match="doesn't answer"):
            add_job_with(hurried, model)
    assert add_job_with(hurried, model).state == "queued"
    hurried.close()


@on_postgres
def test_a_server_process_that_hangs_is_given_up_and_replaced(store, claim, monkeypatch):
    monkeypatch.setattr(postgres_connections, "ANSWER_S", 0.5)
    with store.database.read() as session:
        pid = session.connection().exec_driver_sql("SELECT pg_backend_pid()").scalar()
    os.kill(pid, signal.SIGSTOP)
    try:
        assert claim() is None  # the pool replaces the connection that hangs
        with pytest.raises(UnavailableError, match="doesn't answer"), store.database.read() as session:
            other = session.connection().exec_driver_sql("SELECT pg_backend_pid()").scalar()
            assert other != pid
            session.connection().exec_driver_sql("SELECT pg_sleep(1000)")
    finally:
        os.kill(pid, signal.SIGCONT)


def test_what_protects_postgresql_users_is_set(postgres):
    engine = open_engine(postgres)
    with engine.connect() as connection:
        settings = {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar()
            for name in ("transaction_isolation", "lock_timeout", "idle_in_transaction_session_timeout")
        }
    engine.dispose()
    assert settings == {
        "transaction_isolation": "read committed",
        "lock_timeout": "30s",
        "idle_in_transaction_session_timeout": "1min",
    }


def add_job_with(store, model):
    return store.jobs.add(str(uuid.uuid4()), model.id, "payloads/1", {}, "0" * 64)


def with_query(url, **query):
    return make_url(url).update_query_dict(query).render_as_string(hide_password=False)


def disconnect_all(admin_url, url):
    engine = create_engine(admin_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %(name)s",
            {"name": make_url(url).database},
        )
    engine.dispose()


@on_both
def test_a_commit_of_another_process_changes_the_mark(store_url):
    """Without a mark, as on PostgreSQL, a reader queries again."""
    store, other = Store(store_url), Store(store_url)
    mark = store.database.change_mark()
    assert store.database.change_mark() == mark
    other.models.add("team", "project", "agent", "base", return_existing=False)
    assert (mark is None) == store_url.startswith("postgres")
    assert mark is None or store.database.change_mark() != mark
    store.close()


def test_a_write_that_is_not_committed_yet_changes_no_mark(tmp_path):
    """A reader that looked then would see nothing new, and never look again."""
    store = Store(f"sqlite:///{tmp_path}/store.db")
    mark, log = store.database.change_mark(), tmp_path / "store.db-wal"
    with sqlite3.connect(tmp_path / "store.db", isolation_level=None) as other:
        other.execute("PRAGMA cache_size = 5")  # so that the transaction is written to the log before its end
        before = log.stat().st_size
        other.execute("BEGIN")
        other.execute(
            "CREATE TABLE t AS WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM n LIMIT 20000) "
            "SELECT k, hex(randomblob(100)) AS h FROM n"
        )
        assert log.stat().st_size > before
        assert store.database.change_mark() == mark
        other.execute("COMMIT")
    assert store.database.change_mark() != mark
    store.close()
