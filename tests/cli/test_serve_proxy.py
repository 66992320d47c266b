"""Serve's own proxy with Tandem's middleware: it never answers 404 for a route that will come, nor 500 for a header."""

import socket
from http.client import HTTPResponse

import httpx
import pytest
from ray import serve
from waiting import wait_until

from tandem.cli.deployment import start_serve
from tandem.cluster.config import HttpConfig, TandemConfig
from tandem.cluster.processes.held_ports import hold_port


@serve.deployment
class Api:
    def __call__(self, request):
        return {"known": True}


@pytest.fixture
def url(ray_local):
    """The URL of a Serve that has no application yet."""
    with hold_port("127.0.0.1") as held:
        port = held.getsockname()[1]
        start_serve(TandemConfig(http=HttpConfig(port=port)), "WARNING")
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()


def status_of(url):
    """Return the status of an answer in the API's shape, or None while nothing listens."""
    try:
        response = httpx.get(url)
    except httpx.TransportError:
        return None
    assert response.headers["content-type"] == "application/json", response.text
    return response.status_code


def raw_answer(url, header):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"GET /known HTTP/1.1\r\nHost: x\r\n" + header + b"\r\nConnection: close\r\n\r\n")
        response = HTTPResponse(connection)
        response.begin()
        return response


def test_a_known_path_is_never_answered_404(url):
    seen = set()

    def answers():
        seen.add(status := status_of(f"{url}/known"))
        return status == 200

    wait_until(lambda: status_of(f"{url}/known") == 503)
    serve.run(Api.bind(), name="proxy-test")
    wait_until(answers)
    assert seen <= {None, 200, 503}  # so it is after the loss of a proxy, in tests/faults
    for header in (
        b"X-Request-Id: \xe4\xf6\xff",
        b"X-Request-Id: " + "\U0001f600".encode(),
        b"X-Request-Id: " + b"x" * 50_000,
        b"X-Request-Id:",
        b"X-Request-Id: a\tb",
        b"X-Request-Id: one\r\nX-Request-Id: \xff",
        b"serve_multiplexed_model_id: \xff",
        b"X-Session-Id: \xff",
        b"x-request-timeout-seconds: \xff",
        b"x-request-disconnect-disabled: \xff",
        b"traceparent: \xff",
        b"Accept: \xff",
    ):
        response = raw_answer(url, header)
        assert response.status in (200, 400), (header[:60], response.status)
        if response.status == 200:
            [id] = response.headers.get_all("x-request-id")
            assert id.isascii() and id.isprintable() and len(id) <= 128
