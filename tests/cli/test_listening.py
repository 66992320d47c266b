"""The port of a service is held before anything starts, so two services never share one."""

import errno
import os
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest
from typer.testing import CliRunner

from tandem.cli import listening, main
from tandem.cli.startup import StartError
from tandem.cluster.config import HttpConfig
from tandem.cluster.processes.held_ports import HeldPort, hold_port

HOSTS = ("127.0.0.1", "0.0.0.0", "::", "localhost")
OVERLAPPING = [(first, second) for first in HOSTS for second in HOSTS]
HOLDER = """
from tandem.cluster.processes.held_ports import HeldPort

with HeldPort("0.0.0.0", {port}):
    print(1, flush=True)
    input()
"""


@pytest.fixture
def free_port():
    with hold_port("127.0.0.1") as held:
        port = held.getsockname()[1]
    return port


def serve_as_ray_does(host, port=0):
    """Return a socket that listens and shares its port, like the one of Ray Serve's proxy."""
    server = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    server.bind((host, port))
    server.listen()
    return server


@pytest.mark.parametrize(("first", "second"), OVERLAPPING)
def test_a_port_where_a_service_listens_is_refused_with_its_holder(free_port, first, second):
    with serve_as_ray_does(first, free_port), pytest.raises(StartError) as caught:
        listening.hold(HttpConfig(host=second, port=free_port))
    said = str(caught.value)
    assert str(free_port) in said and f"process {os.getpid()}" in said and "TANDEM_HTTP__PORT" in said
    assert "\n" not in said


@pytest.mark.parametrize(("first", "second"), OVERLAPPING)
def test_a_port_that_another_start_holds_is_refused(free_port, first, second):
    with listening.hold(HttpConfig(host=first, port=free_port)), pytest.raises(StartError, match=str(free_port)):
        listening.hold(HttpConfig(host=second, port=free_port))


@pytest.mark.parametrize("host", HOSTS)
def test_ray_serve_can_listen_on_a_held_port_and_a_released_one_is_free(free_port, host):
    for _ in range(2):
        with listening.hold(HttpConfig(host=host, port=free_port)), serve_as_ray_does(host, free_port):
            pass


def test_other_addresses_of_the_machine_are_other_ports(free_port):
    with listening.hold(HttpConfig(host="127.0.0.1", port=free_port)):
        listening.hold(HttpConfig(host="127.0.0.2", port=free_port)).close()


def test_a_port_with_connections_that_have_just_ended_is_free():
    with serve_as_ray_does("127.0.0.1") as server:
        address = server.getsockname()
        with socket.create_connection(address), server.accept()[0] as accepted:
            accepted.shutdown(socket.SHUT_RDWR)  # this side ends first, so its port stays in TIME_WAIT
    listening.hold(HttpConfig(host=address[0], port=address[1])).close()


def test_a_holder_that_is_killed_releases_its_port(free_port):
    code = HOLDER.format(port=free_port)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"1\n"
        with pytest.raises(StartError, match=f"process {holder.pid}"):
            listening.hold(HttpConfig(host="127.0.0.1", port=free_port))
        holder.kill()
        holder.wait()
    listening.hold(HttpConfig(port=free_port)).close()


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "no-such-host.invalid", "not a host"])
def test_a_host_of_another_machine_is_one_sentence(free_port, host):
    for hold in (listening.hold, listening.hold_any):
        with pytest.raises(StartError, match=r"http\.host") as caught:
            hold(HttpConfig(host=host, port=free_port))
        assert host in str(caught.value)


@pytest.mark.parametrize(
    ("number", "word"), [(errno.EACCES, "1024"), (errno.EPERM, "permitted"), (errno.EADDRINUSE, "taken")]
)
def test_every_reason_has_a_sentence_with_what_to_do(number, word):
    said = listening._sentence(HttpConfig(port=80), OSError(number, os.strerror(number)))
    assert word in said and "TANDEM_HTTP__PORT" in said


def test_a_run_takes_another_port(free_port):
    with serve_as_ray_does("127.0.0.1", free_port), listening.hold_any(HttpConfig(port=free_port)) as held:
        assert held.port not in (0, free_port)


def test_holders_of_any_port_get_different_ones():
    with ExitStack() as held:
        ports = [held.enter_context(HeldPort("127.0.0.1")).port for _ in range(20)]
    assert len(set(ports)) == 20


@pytest.mark.parametrize("command", ["up", "demo"])
def test_no_command_starts_where_a_service_listens(tmp_path, monkeypatch, command, free_port):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path))
    monkeypatch.setenv("TANDEM_HTTP__PORT", str(free_port))
    with serve_as_ray_does("127.0.0.1", free_port):
        result = CliRunner().invoke(main.app, [command])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert "taken" in result.output and len(result.output.splitlines()) == 1


@pytest.mark.parametrize("port", ["0", "-1", "65536", "99999", "http", "", "80.5", "8000/tcp"])
def test_what_is_no_port_is_refused(tmp_path, monkeypatch, port):
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path))
    monkeypatch.setenv("TANDEM_HTTP__PORT", port)
    result = CliRunner().invoke(main.app, ["up"])
    assert result.exit_code == 2 and "http.port" in result.output
