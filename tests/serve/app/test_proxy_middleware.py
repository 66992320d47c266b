"""The answers of Serve's own proxy as clients get them, and ids of requests that aren't plain text."""

import json
import re

import anyio
import httpx
import pytest
from ray.serve._private.http_util import RequestIdMiddleware, convert_object_to_asgi_messages
from ray.serve._private.utils import call_function_from_import_path

from tandem.serve.api.anthropic_errors import AnthropicErrors
from tandem.serve.app.proxies.lazy_gateway import LazyGateway
from tandem.serve.app.proxy_middleware import PROXY_ENVIRONMENT, ProxyAnswers
from tandem.serve.tinker.api.errors import RESULTS, SdkErrors

NO_ROUTE = "Path '/v1/models' not found. Ping http://.../-/routes for available routes."


def proxy(*messages, raises=None):
    """Return an application that answers as Serve's proxy does, behind its middleware, and the ids that it saw."""
    seen = []

    async def app(scope, receive, send):
        for name, value in scope["headers"]:
            name.decode(), value.decode()  # as Serve's proxy does with some of them
        seen.append(scope["headers"])
        for message in messages:
            await send(message)
        if raises:
            raise raises

    return ProxyAnswers(RequestIdMiddleware(app)), seen


def ask(app, path="/v1/models", headers=()):
    async def request():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://tandem") as client:
            return await client.get(path, headers=list(headers))

    return anyio.run(request)


def assert_is_an_error(response, status):
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert len(response.headers.get_list("x-request-id")) == 1
    return error


def test_serve_finds_the_middleware():
    found = call_function_from_import_path(PROXY_ENVIRONMENT["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"])
    assert [one.cls for one in found] == [LazyGateway, ProxyAnswers, AnthropicErrors, SdkErrors]


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/ready", "/", "/it's"])
def test_a_proxy_without_routes_is_starting(path):
    text = f"Path '{path}' not found. Ping http://.../-/routes for available routes."
    response = ask(proxy(*convert_object_to_asgi_messages(text, status_code=404))[0], path)
    assert assert_is_an_error(response, 503)["code"] == "starting"
    assert int(response.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("status", [408, 429, 503])
def test_other_answers_of_the_proxy_have_the_shape_of_the_api(status):
    app, _ = proxy(*convert_object_to_asgi_messages("Deployment(name='api') of /secret", status_code=status))
    response = ask(app)
    assert_is_an_error(response, status)
    assert "secret" not in response.text and "Retry-After" in response.headers


def test_an_api_that_dies_before_it_answers_is_unavailable():
    response = ask(proxy()[0])
    assert assert_is_an_error(response, 503)["code"] == "no_answer"


def test_a_proxy_that_fails_says_under_which_id():
    response = ask(proxy(raises=RuntimeError("a secret"))[0])
    assert response.headers["x-request-id"] in assert_is_an_error(response, 500)["message"]
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("status", "content_type", "body", "path"),
    [
        (404, b"application/json", b'{"error": {}}', "/v1/models"),
        (404, b"text/plain", b"an artifact that isn't there", "/v1/models"),
        (200, b"text/plain; charset=utf-8", b"success", "/v1/models"),
        (503, b"text/plain", b"Route table is not populated yet.", "/-/healthz"),
        (404, b"text/plain", NO_ROUTE.encode(), "/-/routes"),
    ],
)
def test_answers_of_others_pass(status, content_type, body, path):
    start = {"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]}
    half = len(body) // 2
    app, _ = proxy(
        start,
        {"type": "http.response.body", "body": body[:half], "more_body": True},
        {"type": "http.response.body", "body": body[half:]},
    )
    response = ask(app, path)
    assert (response.status_code, response.content) == (status, body)


@pytest.mark.parametrize(
    ("sent", "is_kept"),
    [
        (b"3f2a-1", True),
        (b"Root=1-67891233-abcdef/x+y:z", True),
        (b"x" * 128, True),
        (b"x" * 129, False),
        (b"x" * 10**6, False),
        (b"", False),
        (b"a b", False),
        (b"a\tb", False),
        (b"\xe4\xf6", False),
        (b"\xff\xfe\x00", False),
        ("é".encode(), False),
        ("\U0001f600".encode(), False),
        (b"a\x00b", False),
        (b"a\x1b[31mb", False),
        (b"a\x7f", False),
    ],
)
def test_an_id_is_kept_if_it_is_plain_text(sent, is_kept):
    app, seen = proxy(*convert_object_to_asgi_messages({}))
    response = ask(app, headers=[(b"X-Request-Id", sent)])
    assert response.status_code == 200
    [id] = response.headers.get_list("x-request-id")
    assert [value for name, value in seen[0] if name == b"x-request-id"] == [id.encode()]
    assert (id == sent.decode("latin-1")) == is_kept
    assert re.fullmatch(r"[!-~]{1,128}", id)


def test_a_key_as_an_id_is_not_repeated():
    key = "tdm_" + "x" * 43
    app, seen = proxy(*convert_object_to_asgi_messages({}))
    assert key not in json.dumps(dict(ask(app, headers=[("X-Request-Id", key)]).headers))
    assert key not in str(seen)


@pytest.mark.parametrize(
    "header",
    ["serve_multiplexed_model_id", "X-Session-Id", "x-request-timeout-seconds", "X-Request-Disconnect-Disabled"],
)
def test_a_request_cannot_steer_the_proxy(header):
    app, seen = proxy(*convert_object_to_asgi_messages({}))
    response = ask(app, headers=[(header.encode(), b"\xff"), (b"accept", b"*/*")])
    assert response.status_code == 200
    assert header.lower().encode() not in dict(seen[0])
    assert dict(seen[0])[b"accept"] == b"*/*"


def test_clients_of_anthropics_protocol_get_its_errors_from_a_proxy_too():
    text = "Path '/v1/messages' not found. Ping http://.../-/routes for available routes."
    app = AnthropicErrors(proxy(*convert_object_to_asgi_messages(text, status_code=404))[0])
    response = ask(app, "/v1/messages")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["error"]["type"] == "overloaded_error"
    assert response.json()["request_id"] == response.headers["x-request-id"]


def test_a_request_for_a_result_whose_api_dies_is_one_that_waits(monkeypatch):
    monkeypatch.setattr("tandem.serve.tinker.api.errors.HOLD_S", 0)
    response = ask(SdkErrors(proxy()[0]), RESULTS)
    assert (response.status_code, response.json()["queue_state"]) == (408, "paused_capacity")
    assert ask(SdkErrors(proxy()[0]), "/api/v1/healthz").status_code == 503
