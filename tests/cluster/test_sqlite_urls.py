"""Paths of databases and artifacts with every character that a URL gives a meaning to."""

import sqlite3
from pathlib import Path

import pytest

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import TandemConfig
from tandem.cluster.shared_storage import local_folders
from tandem.cluster.sqlite_urls import sqlite_path, sqlite_url
from tandem.serve.modelarts.settings.project_storage import ProjectStorage
from tandem.serve.store.store import Store

NAMES = (
    "feature%2Flogin",
    "q?x=1",
    "a#b",
    "with space",
    "ünï中😀",
    "quo'te\"s`$(x)",
    "a::b",
    "s3:",
    "file:",
    "100%",
    "%%41",
    "a&b;c=d+e",
    "[INST]*{x}",
    "back\\slash",
    "new\nline",
    "~",
    "latin\udce9",
    ":memory:",
    "@user:pw@host",
    "x" * 200,
)


@pytest.mark.parametrize("name", NAMES)
def test_the_store_and_the_artifacts_are_below_a_home_of_any_name(tmp_path, monkeypatch, name):
    home = tmp_path / name
    monkeypatch.setenv("TANDEM_HOME", str(home))
    config = TandemConfig.load()
    store = Store(config.resolved_store_url)
    store.keys.add("key", "entity", "0" * 64, "train")
    store.close()
    Artifacts(config.artifacts_root).write_blob("payloads/blob", b"content")
    assert {path.name for path in tmp_path.iterdir()} == {name}
    assert (home / "artifacts" / "payloads" / "blob").read_bytes() == b"content"
    with sqlite3.connect(home / "tandem.db") as connection:
        assert connection.execute("SELECT name FROM api_keys").fetchall() == [("key",)]
    connection.close()
    assert Artifacts(config.artifacts_root).read_blob("payloads/blob") == b"content"
    assert local_folders(config) == {"store": home, "artifacts": home / "artifacts"}
    where = ProjectStorage(str(home / "projects" / "p"), ()).resolve("/bucket/data")
    assert Path(where.path) == home / "projects" / "p" / "bucket" / "data"


@pytest.mark.parametrize("ending", ["/", "//", "/."])
def test_a_home_may_end_with_a_slash(tmp_path, monkeypatch, ending):
    monkeypatch.setenv("TANDEM_HOME", f"{tmp_path}{ending}")
    assert TandemConfig.load().resolved_store_url == f"sqlite:///{tmp_path}/tandem.db"


def test_a_relative_home_is_below_the_working_directory_and_one_with_a_tilde_below_the_users(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for given, meant in {"h/x": tmp_path / "h" / "x", "~/t": Path("/home/me/t")}.items():
        monkeypatch.setenv("TANDEM_HOME", given)
        assert TandemConfig.load().home == meant


@pytest.mark.parametrize("home", ["", "  ", "~no-such-user/x"])
def test_a_home_that_names_no_directory_is_one_sentence(monkeypatch, home):
    monkeypatch.setenv("TANDEM_HOME", home)
    with pytest.raises(ValueError, match="home") as caught:
        TandemConfig.load()
    assert "HOME" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:////a/b.db", "/a/b.db"),
        ("sqlite:////a/b.db?timeout=3", "/a/b.db"),
        ("sqlite+pysqlite:////a/b%20c.db", "/a/b c.db"),
        ("sqlite:///relative.db", "relative.db"),
        ("sqlite://", ""),
        ("sqlite:///:memory:", ":memory:"),
        ("postgresql://host/db", None),
    ],
)
def test_the_path_in_a_url(url, path):
    assert sqlite_path(url) == path


@pytest.mark.parametrize("name", NAMES)
def test_a_url_has_the_path_that_it_was_made_of(name):
    assert sqlite_path(sqlite_url(Path("/", name))) == f"/{name}"
