"""Errors of all routes are in the envelope."""

import json

import pytest
from envelope_requests import CONFIGS, EXAMPLE, refused
from fastapi.testclient import TestClient

from tandem.serve.keys import create_key
from tandem.serve.modelarts.store.configs import SavedConfigs


@pytest.mark.parametrize("header", ["X-Auth-Token", "Authorization"])
def test_a_token_comes_in_either_header(app, key, header):
    with TestClient(app, headers={header: key if header == "X-Auth-Token" else f"Bearer {key}"}) as client:
        assert client.get(CONFIGS).json() == {"is_success": True, "config_total_count": 0, "configs": []}


def test_requests_without_permission_get_an_error_in_the_envelope(app, http, store):
    with TestClient(app) as client:
        refused(client.get(CONFIGS), "ModelArts.0201", 401)
        refused(client.get(CONFIGS, headers={"X-Auth-Token": "tdm_wrong"}), "ModelArts.0203", 401)
        infer = create_key(store, "rollouts", "team", "infer")
        message = refused(client.post(CONFIGS, json=EXAMPLE, headers={"X-Auth-Token": infer}), "ModelArts.0108", 403)
        assert "train" in message
    assert "'team'" in refused(http.get("/v1/others/training-job-configs"), "ModelArts.0210", 403)
    refused(http.post("/v1/others/training-job-configs", json=EXAMPLE), "ModelArts.0210", 403)


def test_paths_end_with_a_slash_or_not(http):
    assert http.post(f"{CONFIGS}/", json=EXAMPLE).status_code == 200
    assert http.get(f"{CONFIGS}/testConfig/").json()["config_name"] == "testConfig"
    assert http.get(f"{CONFIGS}/").json()["config_total_count"] == 1


def test_requests_without_a_route_get_an_error_in_the_envelope(http):
    assert "/docs" in refused(http.get("/v1/team/job/nothing"), "ModelArts.0102", 404)
    assert "PATCH" in refused(http.patch(CONFIGS), "ModelArts.0107", 405)
    assert "error" in http.get("/v1/team/nothing").json(), "other paths have the service's own shape"


def test_bodies_other_than_json_objects_get_an_error_in_the_envelope(http):
    for content in (b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"config_name": NaN}'):
        assert refused(http.post(CONFIGS, content=content), "ModelArts.0104", 400)


def test_an_unexpected_failure_gets_an_error_in_the_envelope(http, monkeypatch):
    def fail(*_, **__):
        raise KeyError("a secret")

    monkeypatch.setattr(SavedConfigs, "page", fail)
    message = refused(http.get(CONFIGS), "ModelArts.0010", 500)
    assert "secret" not in message
    assert "log" in message


def test_every_route_puts_errors_into_the_envelope(app, http):
    """An invalid id, parameter, body or method, and a missing key."""
    paths = {path: ops for path, ops in app.openapi()["paths"].items() if path.startswith("/v1/{project_id}/")}
    assert len(paths) >= 11
    names = {"project_id": "team", "config_name": "none", "job_id": "1", "version_id": "1", "log_file": "a"}
    needed = {"log_file": "worker-0.log", "text": "a"}
    for path, operations in paths.items():
        known = path.format(**names)
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - set(map(str.upper, operations)):
            refused(http.request(method, known), "ModelArts.0107", 405)
        for method, operation in operations.items():
            assert operation["responses"]["default"]["content"]["application/json"]["schema"]["$ref"].endswith(
                "/Failure"
            )
            for parameter in operation.get("parameters", ()):
                name, types = parameter["name"], json.dumps(parameter["schema"])
                if parameter["in"] == "path" and name in ("job_id", "version_id"):
                    response = http.request(
                        method, path.format(**names | {name: "x"}), params={"log_file": "a", "text": "a"}
                    )
                    message = refused(response, "ModelArts.0104", 400)
                    assert name in message or "requestBody" in operation  # a missing body is reported first
                elif parameter["in"] == "query" and any(word in types for word in ("integer", "enum", "const")):
                    response = http.request(method, known, params={**needed, name: "?"})
                    assert name in refused(response, "ModelArts.0104", 400)
            if "requestBody" in operation:
                refused(http.request(method, known, content=b"{"), "ModelArts.0104", 400)
            response = http.request(method, known, headers={"Authorization": ""})
            refused(response, "ModelArts.0201", 401)
            refused(http.request(method, f"{known}/", headers={"Authorization": ""}), "ModelArts.0201", 401)
