"""The routes of Responses and Messages: keys, versions, and errors in the protocol's own shape."""

import json

import pytest
from fastapi.testclient import TestClient
from protocol_answers import events_of

from tandem.cluster.engine.requests.protocols import CHAT, COUNT_TOKENS, MESSAGES, RESPONSES
from tandem.cluster.errors import EngineDeadError
from tandem.serve.api.anthropic_errors import anthropic_error
from tandem.serve.keys import create_key

NAME, ZERO = "team/project/agent", "0" * 64
TURNS = [{"role": "user", "content": "1 + 6 = ?"}]
BODIES = {
    RESPONSES: {"model": NAME, "input": TURNS},
    MESSAGES: {"model": NAME, "messages": TURNS, "max_tokens": 5},
    COUNT_TOKENS: {"model": NAME, "messages": TURNS},
}
PATHS = sorted(BODIES)


@pytest.mark.parametrize("path", PATHS)
def test_a_request_reaches_the_engine_under_a_pinned_version(http, engine, model, path):
    engine.answers({"made": "by vLLM"})
    response = http.post(path, json=BODIES[path] | {"model": f"{NAME}:step0"})
    assert (response.status_code, response.json()) == (200, {"made": "by vLLM"})
    assert (response.headers["x-policy-version"], response.headers["x-policy-digest"]) == ("0", ZERO)
    [(base_model, method, asked_path, headers, body, digest)] = engine.asked
    assert (base_model, method, asked_path, digest) == ("tandem/tiny", "POST", path, ZERO)
    assert headers["x-requested-model"] == "team/project/agent%3Astep0"
    ours = {"store": False, "request_id": f"resp_{headers['x-request-id']}"} if path == RESPONSES else {}
    assert body == BODIES[path] | {"model": f"policy-{ZERO}"} | ours


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["team/project/other", "others/project/agent", f"{NAME}:step4"])
def test_names_resolve_as_in_chat(http, engine, model, path, name):
    of_chat = http.post(CHAT, json={"model": name, "messages": TURNS})
    response = http.post(path, json=BODIES[path] | {"model": name})
    assert response.status_code == of_chat.status_code == 404
    said, of_chat_said = response.json()["error"]["message"], of_chat.json()["error"]["message"]
    assert said.removeprefix("model: ") == of_chat_said
    assert engine.asked == []


@pytest.mark.parametrize("header", ["x-api-key", "Authorization", "X-Auth-Token"])
@pytest.mark.parametrize("path", [MESSAGES, COUNT_TOKENS])
def test_a_key_may_be_where_anthropics_clients_send_it(app, engine, model, key, path, header):
    engine.answers({"type": "message"})
    sent = {header: f"Bearer {key}" if header == "Authorization" else key, "anthropic-version": "2023-06-01"}
    with TestClient(app) as client:
        assert client.post(path, json=BODIES[path], headers=sent).status_code == 200
        wrong = client.post(path, json=BODIES[path], headers={"x-api-key": "tdm_wrong"})
        nothing = client.post(path, json=BODIES[path])
    assert [response.json()["error"]["type"] for response in (wrong, nothing)] == ["authentication_error"] * 2
    assert "x-api-key" in nothing.json()["error"]["message"]


@pytest.mark.parametrize("path", [CHAT, RESPONSES, "/v1/messages_of_others", "/v1/preview/models"])
def test_that_header_counts_on_the_routes_of_messages_alone(app, model, key, path):
    with TestClient(app) as client:
        assert client.post(path, json=BODIES[RESPONSES], headers={"x-api-key": key}).status_code in (401, 404)


def test_a_key_of_another_entity_finds_nothing_there(app, store, engine, model):
    stranger = create_key(store, "stranger", "others", "admin")
    with TestClient(app) as client:
        response = client.post(MESSAGES, json=BODIES[MESSAGES], headers={"x-api-key": stranger})
    assert (response.status_code, engine.asked) == (404, [])


@pytest.mark.parametrize(
    ("status", "body", "type", "message"),
    [
        (
            400,
            {"error": {"message": "must be 1", "param": "max_tokens"}},
            "invalid_request_error",
            "max_tokens: must be 1",
        ),
        (
            400,
            {"error": {"message": "max_tokens is 0", "param": "max_tokens"}},
            "invalid_request_error",
            "max_tokens is 0",
        ),
        (401, {"error": {"message": "no key", "param": None}}, "authentication_error", "no key"),
        (403, {"error": {"message": "no"}}, "permission_error", "no"),
        (404, {"error": {"message": "none"}}, "not_found_error", "none"),
        (413, {"error": {"message": "large"}}, "request_too_large", "large"),
        (422, {"error": {"message": "bad"}}, "invalid_request_error", "bad"),
        (429, {"error": {"message": "many"}}, "rate_limit_error", "many"),
        (500, {"error": {"message": "bug"}}, "api_error", "bug"),
        (503, {"error": {"message": "busy"}}, "overloaded_error", "busy"),
        (504, {"error": {"message": "late"}}, "timeout_error", "late"),
        (500, {}, "api_error", "The request failed."),
    ],
)
def test_each_status_has_anthropics_type(status, body, type, message):
    shaped = anthropic_error(status, body, "req_1")
    assert shaped == {"type": "error", "error": {"type": type, "message": message}, "request_id": "req_1"}
    assert anthropic_error(status, shaped) == shaped  # proxies and the API may both shape it


def test_a_refusal_of_the_engine_keeps_status_and_headers(http, engine, model):
    engine.answers({"error": {"message": "It is being replaced.", "type": "x", "param": None, "code": 503}}, 503)
    engine.headers["retry-after"] = "1"
    response = http.post(MESSAGES, json=BODIES[MESSAGES])
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    id = response.headers["x-request-id"]
    error = {"type": "overloaded_error", "message": "It is being replaced."}
    assert response.json() == {"type": "error", "error": error, "request_id": id}
    assert int(response.headers["content-length"]) == len(response.content)


@pytest.mark.parametrize("path", PATHS)
def test_a_field_that_is_not_supported_is_named(http, engine, model, path):
    response = http.post(path, json=BODIES[path] | {"container": {"id": "c"}})
    assert response.status_code == 400 and "container" in response.json()["error"]["message"]
    assert engine.asked == []


def test_a_thread_is_refused_in_the_way_that_makes_clients_send_all_messages(http, engine, model):
    error = http.post(MESSAGES, json=BODIES[MESSAGES] | {"thread": {"type": "create"}}).json()["error"]
    assert error["details"]["error_code"] == "thread_unsupported_request"
    assert error["type"] == "invalid_request_error" and "thread" in error["message"]


@pytest.mark.parametrize("failure", [EngineDeadError("The engine died."), KeyError("secret")], ids=type)
@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
def test_a_stream_that_fails_ends_with_an_event_of_the_protocol(http, engine, model, path, failure):
    first = {"type": "response.created" if path == RESPONSES else "message_start"}
    engine.streams(b"event: " + first["type"].encode() + b"\ndata: " + json.dumps(first).encode() + b"\n\n", failure)
    response = http.post(path, json=BODIES[path] | {"stream": True})
    begin, error = events_of(response.content)
    assert begin == first and error["type"] == "error" and "secret" not in response.text
    message = error["message"] if path == RESPONSES else error["error"]["message"]
    assert ("The engine died." in message) == isinstance(failure, EngineDeadError)
    if path == RESPONSES:
        assert error["sequence_number"] == 1 and error["error"]["message"] == message
    else:
        assert error == {"type": "error", "error": {"type": "api_error", "message": message}}


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")],
)
def test_no_response_is_stored(http, model, method, path):
    response = http.request(method, f"{RESPONSES}/resp_1{path}")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "response_not_found", "response_id")
    assert "resp_1" in error["message"] and "input" in error["message"]


def test_a_path_that_is_not_there_has_the_shape_too(http):
    for method, path in (("POST", "/v1/messages/batches"), ("GET", MESSAGES)):
        response = http.request(method, path)
        assert response.status_code in (404, 405)
        assert response.json()["error"]["type"] in ("not_found_error", "invalid_request_error")


def test_the_routes_are_documented(http):
    paths = http.get("/openapi.json").json()["paths"]
    for path in PATHS:
        assert set(paths[path]["post"]["responses"]["200"]["headers"]) == {
            "x-policy-version",
            "x-policy-digest",
            "x-engine-replica",
        }
