"""The port of a service that a run starts for itself."""

import socket

import pytest

from tandem.cli.run_service import _on_free_port
from tandem.cluster.config import HttpConfig, TandemConfig
from tandem.cluster.processes.held_ports import hold_port


@pytest.fixture(params=["127.0.0.1", "::1", "localhost"])
def other(request):
    """A socket of another program that is bound but doesn't listen yet, and its host."""
    with hold_port(request.param) as other:
        yield other, request.param


def test_the_configured_port_is_used_where_it_is_free(other):
    server, host = other
    port = server.getsockname()[1]
    server.close()
    with _on_free_port(TandemConfig(http=HttpConfig(host=host, port=port))) as config:
        assert (config.http.host, config.http.port) == (host, port)


def test_another_one_is_used_and_held_where_it_is_taken(other):
    server, host = other
    server.listen()
    port = server.getsockname()[1]
    with _on_free_port(TandemConfig(http=HttpConfig(host=host, port=port))) as config:
        assert config.http.port not in (0, port)
        with socket.socket(server.family) as thief, pytest.raises(OSError, match="in use"):
            thief.bind((host, config.http.port))
    assert config.http.host == host
