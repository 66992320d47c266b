"""A service that other machines reach has a key before it listens."""

import socket

import pytest
from typer.testing import CliRunner

from tandem.cli import exposure, launch
from tandem.cli import main as cli
from tandem.cli.startup import StartError, Startup
from tandem.cluster.config import HttpConfig, TandemConfig
from tandem.runs.reporting.console import PlainConsole
from tandem.serve.store.store import Store

LOCAL = ("127.0.0.1", "127.8.7.6", "::1", "localhost", "::ffff:127.0.0.1")
PUBLIC = ("0.0.0.0", "::", "192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "0", "no-such-host.invalid")


@pytest.mark.parametrize("host", LOCAL)
def test_a_loopback_address_is_local(host):
    assert exposure.is_local(host)


@pytest.mark.parametrize("host", PUBLIC)
def test_every_other_address_is_not(host):
    assert not exposure.is_local(host)


def test_a_name_is_local_if_all_its_addresses_are(monkeypatch):
    def found(*addresses):
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (a, 0)) for a in addresses])

    found("127.0.0.1", "::1")
    assert exposure.is_local("here")
    found("127.0.0.1", "192.0.2.1")
    assert not exposure.is_local("here")


def test_the_url_that_this_machine_uses():
    for host, shown in (("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("db.example", "db.example")):
        assert exposure.url(HttpConfig(host=host, port=80)) == f"http://{shown}:80"


@pytest.fixture
def tandem(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(cli.app, arguments)


@pytest.fixture
def started(monkeypatch):
    """The configurations passed to the launcher, which starts nothing here."""
    configs = []

    def running(config, *_):
        configs.append(config)
        raise StartError("It doesn't start in this test.")

    monkeypatch.setattr(launch, "running", running)
    return configs


@pytest.mark.parametrize("host", PUBLIC)
def test_it_does_not_start_on_a_public_address_without_a_valid_key(tandem, monkeypatch, started, host):
    monkeypatch.setenv("TANDEM_HTTP__HOST", host)
    for _ in range(2):
        refused = tandem("up")
        assert refused.exit_code == 2
        assert host in refused.output and "tandem keys create --name me --role admin" in refused.output
        assert started == []
        key = tandem("keys", "create", "--name", "me", "--role", "admin").output.strip()
        assert tandem("keys", "revoke", key).exit_code == 0
    tandem("keys", "create", "--name", "me", "--role", "infer")
    assert tandem("up").exit_code == 1
    assert [config.http.host for config in started] == [host]


def test_on_a_loopback_address_it_starts_without_keys(tandem, started):
    assert tandem("up").exit_code == 1
    assert len(started) == 1


def test_keys_are_listed_with_their_roles(tandem):
    for role in ("infer", "train", "admin"):
        assert tandem("keys", "create", "--name", f"for {role}", "--role", role, "--entity", "team").exit_code == 0
    assert tandem("keys", "create", "--name", "usual").exit_code == 0
    store = Store(TandemConfig().resolved_store_url)
    assert sorted((row.name, row.entity, row.role) for row in store.keys.all()) == [
        ("for admin", "team", "admin"),
        ("for infer", "team", "infer"),
        ("for train", "team", "train"),
        ("usual", "default", "train"),
    ]
    listed = tandem("keys", "list").output
    assert all(role in listed for role in ("infer", "train", "admin"))
    assert tandem("keys", "create", "--name", "k", "--role", "root").exit_code == 2
    bad = tandem("keys", "create", "--name", "k", "--entity", "a/b")
    assert bad.exit_code == 2 and "Entity" in bad.output


@pytest.mark.parametrize(("mode", "warns"), [("token", False), ("disabled", True), (None, True)])
def test_it_warns_of_a_ray_without_token_authentication(monkeypatch, capsys, mode, warns):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    Startup(PlainConsole(stderr=True, width=400)).warn_of_open_ray()
    said = capsys.readouterr().err
    assert ("RAY_AUTH_MODE=token" in said) == warns
    assert ("docs/security.md" in said) == warns
