"""Every error of every route has one shape. Routes of projects have an envelope, which is tested separately."""

import json
import re

import pytest
from refusals import in_the_one_shape

from tandem.serve.api import error_responses
from tandem.serve.errors import ServeError, UnavailableError
from tandem.serve.keys import create_key
from tandem.serve.modelarts.errors import RejectedError
from tandem.serve.modelarts.store.jobs import TooManyJobsError

ERROR = {"message", "type", "code", "param"}
ENDS = {"/v1/preview/changes": {"seconds": 0}}
"""Parameters with which a stream that a key may read has an end."""
TYPES = {kind for _, kind, _ in error_responses._STATUS.values()} | {"server_error"}


def routes(app):
    """Yield method and path of every route, with unknown ids."""
    for route in app.routes:
        if route.path.startswith("/v1/{project_id}/"):
            continue
        for method in sorted(getattr(route, "methods", None) or ()):
            if method != "HEAD":
                path = route.path.replace("{step}", "1")
                yield method, re.sub(r"\{\w+\}", "6f0a4b06-26ca-4d3c-8b8a-7d8c2a5c1b3e", path)


def check_shape(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert "x-request-id" in response.headers
    body = response.json()
    if response.request.url.path.startswith("/v1/messages"):
        body = in_the_one_shape(body, status)
    else:
        assert body["error"]["type"] in TYPES
    assert set(body["error"]) == ERROR
    assert re.fullmatch(r"[a-z_]+", body["error"]["code"])
    assert len(body["error"]["message"].split()) > 3
    assert set(body) <= {"error", "detail"}
    assert all(set(fault) == {"loc", "msg", "type"} for fault in body.get("detail", ()))


@pytest.fixture
def v1(app):
    found = [(method, path) for method, path in routes(app) if path.startswith("/v1/")]
    assert len(found) >= 20
    return found


def with_body(v1):
    return [
        (method, path)
        for method, path in v1
        if method == "POST"
        and not path.endswith(("acknowledge", "cancel", "pause", "resume", "alerts/test"))  # need no body
        and not path.endswith(("files", "uploads", "permissions"))  # have other bodies
        and not path.endswith("/versions")  # an import looks for the model first: its body may be large
    ]


def test_without_a_key(http, v1):
    del http.headers["Authorization"]
    for method, path in v1:
        response = http.request(method, path)
        check_shape(response, 401)
        assert response.headers["WWW-Authenticate"] == "Bearer"


def test_with_a_key_that_may_not(http, v1, store):
    http.headers["Authorization"] = f"Bearer {create_key(store, 'rollouts', 'team', 'infer')}"
    refused = [path for method, path in v1 if http.request(method, path, params=ENDS.get(path)).status_code == 403]
    assert {"/v1/preview/keys", "/v1/preview/training-jobs"} <= set(refused)
    for method, path in v1:
        if path in refused and (response := http.request(method, path)).status_code == 403:
            check_shape(response, 403)


def test_of_things_that_are_not_there(http, v1, store):
    http.headers["Authorization"] = f"Bearer {create_key(store, 'all', 'team', 'admin')}"
    for method, path in v1:
        if "6f0a4b06" in path and (method, path) not in with_body(v1) and not path.endswith("/checkpoints"):
            check_shape(http.request(method, path), 404)


def test_of_paths_and_methods_that_are_not_there(http, app):
    for method, path in routes(app):
        check_shape(http.request("PATCH", path), 405)
        if not path.startswith("/api/v1/training_runs/"):  # whose checkpoints have ids with slashes
            check_shape(http.request(method, f"{path}/more/of/it/nothing"), 404)


def test_of_bodies(http, v1, configure, store):
    http.headers["Authorization"] = f"Bearer {create_key(store, 'all', 'team', 'admin')}"
    assert len(with_body(v1)) >= 6
    for method, path in with_body(v1):
        invalid = 400 if path.startswith("/v1/fine_tuning/") else 422  # as OpenAI's own API
        check_shape(http.request(method, path, content=b"{"), invalid)
        check_shape(http.request(method, path, content=b"{}"), invalid)
        check_shape(http.request(method, path, content=b"{}", headers={"Content-Encoding": "br"}), 415)
        check_shape(http.request(method, path, content=b"{}", headers={"Content-Encoding": "gzip"}), invalid)
    configure("limits", max_payload_bytes=1, max_request_bytes=1, max_dataset_bytes=1)
    for method, path in with_body(v1):
        check_shape(http.request(method, path, content=b"{}"), 413)


def test_of_a_store_that_does_not_answer(http, v1, services, monkeypatch):
    def fail(*_):
        raise UnavailableError("The store doesn't answer. Try again in a moment.", "store_unavailable")

    monkeypatch.setattr(services.store.keys, "find", fail)
    for method, path in v1:
        check_shape(http.request(method, path), 503)


def test_of_a_bug(http, v1, services, monkeypatch):
    def fail(*_):
        raise KeyError("a secret")

    monkeypatch.setattr(services.store.keys, "find", fail)
    for method, path in v1:
        response = http.request(method, path)
        check_shape(response, 500)
        assert "secret" not in response.text


def test_each_kind_of_error_has_a_status():
    def kinds(root):
        return {kind for child in root.__subclasses__() for kind in (child, *kinds(child))}

    # The routes of the training-job-configs API turn these two into its envelope.
    assert kinds(ServeError) - {RejectedError, TooManyJobsError} == set(error_responses._STATUS)


def test_the_document_shows_the_shape(http):
    document = http.get("/openapi.json").json()
    shape = document["components"]["schemas"]["ErrorBody"]
    assert set(shape["required"]) == {"error"}
    assert set(document["components"]["schemas"]["ErrorDescription"]["required"]) == {
        "message",
        "type",
        "code",
        "param",
    }
    without = [
        (path, method)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if "ErrorBody" not in json.dumps(operation["responses"].get("default", {}))
        and not path.startswith("/v1/{project_id}/")
    ]
    assert without == [("/v1/preview/training-jobs", "post")]
