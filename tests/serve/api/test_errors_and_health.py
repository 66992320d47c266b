import logging
import pickle

import pytest
from fastapi.testclient import TestClient
from waiting import wait_until

from tandem.serve.errors import (
    AuthenticationError,
    ConflictError,
    DeadlineError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    Problem,
    ServeError,
    UnavailableError,
)


def test_unknown_paths_and_methods_are_json(http):
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/models/", 404),
        ("POST", "/v1/models", 405),
        ("PUT", "/v1/preview/training-jobs", 405),
        ("DELETE", "/health", 405),
    ):
        response = http.request(method, path)
        assert response.status_code == status, (method, path)
        assert path in response.json()["error"]["message"]
    assert response.headers["Allow"] == "GET"


def test_an_unexpected_failure_names_the_request_in_the_answer_and_the_log(http, services, monkeypatch, caplog):
    def fail(*_, **__):
        raise KeyError("a secret")

    monkeypatch.setattr(services.store.models, "page", fail)
    with caplog.at_level(logging.ERROR):
        response = http.get("/v1/models")
    assert response.status_code == 500
    error = response.json()["error"]
    request_id = response.headers["x-request-id"]
    assert request_id in error["message"]
    assert "secret" not in response.text
    [record] = [r for r in caplog.records if request_id in r.getMessage()]
    assert record.exc_info


def test_a_client_that_hangs_up_while_sending_is_no_failure(connect, hang_up, server, http, caplog):
    others = set(server.server_state.tasks)
    with caplog.at_level(logging.WARNING):
        connection = connect("/v1/preview/models", "Content-Length: 100")
        connection.sendall(b'{"project":')
        wait_until(lambda: server.server_state.tasks - others)  # the request is being received
        hang_up(connection)
        wait_until(lambda: not server.server_state.tasks - others)
    assert [record for record in caplog.records if record.name.startswith("tandem")] == []
    assert http.get("/v1/preview/models").json()["data"] == []


def test_each_request_has_its_own_id(http):
    ids = {http.get("/health").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


@pytest.mark.parametrize(("given", "is_used"), [("3f2a-1", True), ("x" * 129, False), ("a b", False), ("", False)])
def test_a_plain_id_that_comes_with_a_request_is_its_id(http, services, monkeypatch, given, is_used):
    def fail(*_, **__):
        raise KeyError

    monkeypatch.setattr(services.store.models, "page", fail)
    response = http.get("/v1/models", headers={"X-Request-ID": given})
    # Serve's proxy, which sets the id on the request, also sets it on the response.
    assert ("x-request-id" in response.headers) == (not is_used)
    named = given if is_used else response.headers["x-request-id"]
    assert named in response.json()["error"]["message"]


def test_a_store_that_does_not_answer_is_said_to_be_unavailable(http, store, tmp_path):
    store.close()
    (tmp_path / "tandem.db").unlink()
    (tmp_path / "tandem.db").mkdir()
    response = http.get("/v1/models")
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"
    assert "SELECT" not in response.text
    health = http.get("/health")
    assert health.status_code == 503
    assert health.json() == {"status": "degraded", "reasons": ["The store doesn't answer."]}


@pytest.mark.parametrize(
    ("params", "place"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"order": "up"}, "order"),
        ({"after": "x"}, "after"),
        ({"project": "a/b"}, "project"),
        ({"name": "\x00"}, "name"),
    ],
)
def test_bad_parameters_are_named_and_not_echoed(http, params, place):
    response = http.get("/v1/preview/models", params=params)
    assert response.status_code == 422
    body = response.json()
    assert [fault["loc"] for fault in body["detail"]] == [["query", place]]
    assert set(body["detail"][0]) == {"loc", "msg", "type"}
    assert body["error"]["param"] == f"query.{place}"
    assert body["error"]["message"].startswith(f"query.{place}: ")


def test_errors_survive_pickling():
    problems = (Problem(("body", "a", 0), "is wrong"), Problem(("body", "b"), "is missing", "missing"))
    for error in (
        AuthenticationError("no key"),
        ForbiddenError("not yours", "wrong_entity", "entity"),
        NotFoundError("gone", "model_not_found"),
        ConflictError("taken", "model_exists", "name"),
        UnavailableError("later", "starting"),
        DeadlineError("too long", "deadline_exceeded"),
        InvalidRequestError(problems, "invalid_trajectory"),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert isinstance(copy, ServeError)
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
    assert str(InvalidRequestError(problems)) == "body.a.0: is wrong (and 1 more; see detail)"


def test_health_needs_no_key(app):
    with TestClient(app) as client:
        response = client.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok", "reasons": []})


def test_health_tells_what_does_not_work(http, services, coordinator):
    coordinator["tandem/tiny"]["learners_running"] = False
    coordinator["tandem/tiny"]["last_error"] = "OSError: /secret/path"
    services.base_models.append("late/base")
    response = http.get("/health")
    assert response.status_code == 200
    body = response.json()
    assert body["status"] == "degraded"
    assert [reason.split(":")[0] for reason in body["reasons"]] == ["late/base", "tandem/tiny", "tandem/tiny"]
    assert "secret" not in response.text


def test_a_coordinator_that_does_not_answer_degrades(http, coordinator):
    coordinator["raises"] = RuntimeError("actor died")
    body = http.get("/health").json()
    assert body["status"] == "degraded"
    assert "coordinator" in body["reasons"][0]


def test_an_engine_that_does_not_run_degrades(http, engine_faults):
    engine_faults["tandem/tiny"] = "its engine isn't running; completions wait for it; it is starting."
    response = http.get("/health")
    assert response.status_code == 200
    reason = "tandem/tiny: its engine isn't running; completions wait for it; it is starting."
    assert response.json() == {"status": "degraded", "reasons": [reason]}


def test_a_serve_that_says_nothing_about_engines_degrades(http, engine_faults):
    engine_faults["raises"] = RuntimeError("the controller died: /secret/path")
    body = http.get("/health").json()
    assert body["status"] == "degraded"
    assert "Ray Serve" in body["reasons"][0] and "secret" not in body["reasons"][0]


def test_the_document_says_what_health_answers_with_each_status(http):
    responses = http.get("/openapi.json").json()["paths"]["/health"]["get"]["responses"]
    schemas = {status: responses[status]["content"]["application/json"]["schema"] for status in ("200", "503")}
    assert schemas == {status: {"$ref": "#/components/schemas/Health"} for status in ("200", "503")}
