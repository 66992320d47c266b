"""The training-job-configs API: every rule of a configuration, every error in the envelope."""

import json

import pytest
from fastapi.testclient import TestClient

from tandem.serve.keys import create_key
from tandem.serve.modelarts.store.configs import SavedConfigs

CONFIGS = "/v1/team/training-job-configs"
EXAMPLE = {
    "config_name": "testConfig",
    "config_desc": "This is config",
    "worker_server_num": 1,
    "app_url": "/usr/app/",
    "boot_file_url": "/usr/app/boot.py",
    "parameter": [{"label": "learning_rate", "value": "0.01"}, {"label": "batch_size", "value": "32"}],
    "spec_id": 1,
    "dataset_id": "38277e62-9e59-48f4-8d89-c8cf41622c24",
    "dataset_version_id": "2ff0d6ba-c480-45ae-be41-09a8369bfc90",
    "engine_id": 1,
    "train_url": "/usr/train/",
    "log_url": "/usr/log/",
}
"""The published example of a request."""
ALGORITHM = {
    "config_name": "offline-rl",
    "worker_server_num": 1,
    "model_id": 1,
    "spec_id": 0,
    "data_url": "/bucket/groups.jsonl",
    "parameter": [{"label": "model_name", "value": "agent"}, {"label": "learning_rate", "value": 0.001}],
}


def changed(body, **changes):
    """Return a body with other values; None removes a field."""
    return {key: value for key, value in {**body, **changes}.items() if value is not None}


def refused(response, code, status):
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"is_success", "error_message", "error_code"}
    assert (body["is_success"], body["error_code"]) == (False, code), body
    return body["error_message"]


def test_the_published_example_is_accepted_and_comes_back_whole(http):
    response = http.post(CONFIGS, json=EXAMPLE)
    assert (response.status_code, response.json()) == (200, {"is_success": True})
    saved = http.get(f"{CONFIGS}/testConfig").json()
    assert {name: saved[name] for name in EXAMPLE} == EXAMPLE
    assert (saved["is_success"], saved["spec_code"], saved["core"], saved["gpu_num"]) == (True, "tandem.cpu.1", "1", 0)
    assert (saved["engine_type"], saved["engine_name"]) == (3, "Ray")
    assert saved["engine_version"].startswith("Ray-2.")
    assert saved["data_url"] is None
    assert saved["create_time"] == 1767225600000


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


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"config_name": None}, "0107", "config_name"),
        ({"config_name": ""}, "0104", "config_name"),
        ({"config_name": "a" * 65}, "0104", "config_name"),
        ({"config_name": "a b"}, "0104", "config_name"),
        ({"config_name": "a/b"}, "0104", "config_name"),
        ({"config_name": "é"}, "0104", "config_name"),
        ({"config_name": "a\n"}, "0104", "config_name"),
        ({"config_name": 7}, "0104", "config_name"),
        ({"config_desc": "x" * 257}, "0104", "config_desc"),
        ({"worker_server_num": None}, "0107", "worker_server_num"),
        ({"worker_server_num": 0}, "0104", "worker_server_num"),
        ({"worker_server_num": 3}, "0104", "worker_server_num"),
        ({"worker_server_num": "1"}, "0104", "worker_server_num"),
        ({"worker_server_num": True}, "0104", "worker_server_num"),
        ({"worker_server_num": 1.5}, "0104", "worker_server_num"),
        ({"spec_id": None}, "0107", "spec_id"),
        ({"spec_id": 99}, "0104", "spec_id"),
        ({"spec_id": 0}, "0104", "spec_id"),
        ({"app_url": None}, "0107", "app_url"),
        ({"boot_file_url": None}, "0107", "boot_file_url"),
        ({"app_url": None, "boot_file_url": None}, "0107", "app_url"),
        ({"boot_file_url": "/usr/other/boot.py"}, "0104", "boot_file_url"),
        ({"boot_file_url": "/usr/app/../boot.py"}, "0104", "boot_file_url"),
        ({"boot_file_url": "/usr/application/boot.py"}, "0104", "boot_file_url"),
        ({"boot_file_url": "/usr/app/"}, "0104", "boot_file_url"),
        ({"model_id": 1}, "0107", "app_url"),
        ({"engine_id": 99}, "0104", "engine_id"),
        ({"user_image_url": "registry/image:1.0"}, "0105", "user_image_url"),
        ({"user_command": "bash run.sh"}, "0105", "user_image_url"),
        ({"dataset_id": None}, "0107", "dataset_id"),
        ({"dataset_version_id": None}, "0107", "dataset_version_id"),
        ({"dataset_id": None, "dataset_version_id": None}, "0107", "data_url"),
        ({"data_url": "/usr/data/"}, "0107", "dataset_id"),
        ({"data_source": [{"type": "obs", "data_url": "/usr/data/"}]}, "0107", "data_source"),
        ({"dataset_id": "../x"}, "0404", "dataset_id"),
        ({"train_url": "/../x"}, "0415", "train_url"),
        ({"train_url": "s3://elsewhere/x"}, "0415", "train_url"),
        ({"log_url": "file:///etc"}, "0415", "log_url"),
        ({"log_url": "somewhere"}, "0404", "log_url"),
        ({"app_url": "file:///usr/app/", "boot_file_url": "file:///usr/app/boot.py"}, "0415", "app_url"),
        ({"parameter": [{"value": "1"}]}, "0107", "parameter.0.label"),
        ({"parameter": [{"label": "", "value": "1"}]}, "0104", "parameter.0.label"),
        ({"parameter": [{"label": "a", "value": [1]}]}, "0104", "parameter.0.value"),
        ({"parameter": {"label": "a"}}, "0104", "parameter"),
        ({"colour": "blue"}, "0107", "colour"),
    ],
)
def test_the_error_names_the_field_that_breaks_a_rule(http, changes, code, field):
    status = {"0105": 403, "0415": 403}.get(code, 400)
    message = refused(http.post(CONFIGS, json=changed(EXAMPLE, **changes)), f"ModelArts.{code}", status)
    assert field in message
    assert http.get(CONFIGS).json()["config_total_count"] == 0


@pytest.mark.parametrize(
    ("sources", "code", "field"),
    [
        ([], "0107", "data_source"),
        ([{"type": "obs"}], "0107", "data_source[0].data_url"),
        ([{"type": "dataset", "dataset_id": "d"}], "0107", "data_source[0].dataset_version"),
        ([{"type": "obs", "data_url": "/a/b", "dataset_id": "d"}], "0107", "data_source[0].dataset_id"),
        (
            [{"type": "obs", "data_url": "/a/b"}, {"type": "dataset", "dataset_id": "d", "dataset_version": "1"}],
            "0107",
            "mixed",
        ),
        (
            [{"type": "obs", "data_url": "/a/b"}, {"type": "obs", "data_url": "/../b"}],
            "0415",
            "data_source[1].data_url",
        ),
        ([{"type": "ftp", "data_url": "/a/b"}], "0104", "data_source.0.type"),
    ],
)
def test_data_sources_are_of_one_kind_and_complete(http, sources, code, field):
    body = changed(EXAMPLE, dataset_id=None, dataset_version_id=None)
    response = http.post(CONFIGS, json={**body, "data_source": sources})
    assert field in refused(response, f"ModelArts.{code}", 403 if code == "0415" else 400)


@pytest.mark.parametrize(
    "sources",
    [
        [{"type": "obs", "data_url": "/a/b"}, {"type": "obs", "data_url": "obs://a/c"}],
        [{"type": "dataset", "dataset_id": "d", "dataset_version": "1"}],
    ],
)
def test_data_sources_are_accepted(http, sources):
    body = changed(EXAMPLE, dataset_id=None, dataset_version_id=None)
    assert http.post(CONFIGS, json={**body, "data_source": sources}).json() == {"is_success": True}


@pytest.mark.parametrize(
    ("parameters", "code", "place"),
    [
        ([], "0107", "'model_name'"),
        ([{"label": "model_name", "value": "a/b"}], "0104", "'model_name'"),
        ([{"label": "learning_rate", "value": "fast"}], "0104", "'learning_rate'"),
        ([{"label": "learning_rate", "value": "-1"}], "0104", "'learning_rate'"),
        ([{"label": "lerning_rate", "value": "1"}], "0104", "'lerning_rate'"),
        ([{"label": "loss_fn", "value": "ppo"}], "0104", "'loss_fn'"),
        ([{"label": "batch_size", "value": "0"}], "0104", "'batch_size'"),
        ([{"label": "base_model", "value": "none/such"}], "0104", "base_model"),
        ([{"label": "batch_size", "value": "2.5"}], "0104", "'batch_size'"),
        ([{"label": "batch_size", "value": 1}, {"label": "batch_size", "value": 2}], "0107", "'batch_size'"),
    ],
)
def test_parameters_of_a_built_in_algorithm_are_checked(http, parameters, code, place):
    given = [{"label": "model_name", "value": "agent"}, *parameters] if parameters else []
    if parameters and parameters[0]["label"] == "model_name":
        given = parameters
    message = refused(http.post(CONFIGS, json={**ALGORITHM, "parameter": given}), f"ModelArts.{code}", 400)
    assert place in message


def test_a_built_in_algorithm_runs_on_the_learners(http):
    assert http.post(CONFIGS, json=ALGORITHM).json() == {"is_success": True}
    for changes, field in (
        ({"spec_id": 1}, "spec_id"),
        ({"worker_server_num": 2}, "worker_server_num"),
        ({"model_id": 9}, "model_id"),
        ({"engine_id": 1}, "engine_id"),
    ):
        assert field in http.post(CONFIGS, json={**ALGORITHM, **changes}).json()["error_message"]


def test_a_name_is_unique_in_its_project(http, store):
    http.post(CONFIGS, json=EXAMPLE)
    assert "testConfig" in refused(http.post(CONFIGS, json=EXAMPLE), "ModelArts.0103", 409)
    http.headers["Authorization"] = f"Bearer {create_key(store, 'stranger', 'others')}"
    refused(http.get("/v1/others/training-job-configs/testConfig"), "ModelArts.0102", 404)
    assert http.post("/v1/others/training-job-configs", json=EXAMPLE).json() == {"is_success": True}


def test_a_change_replaces_the_whole_configuration(http):
    http.post(CONFIGS, json=EXAMPLE)
    body = changed(EXAMPLE, config_name=None, train_url=None, worker_server_num=2)
    assert http.put(f"{CONFIGS}/testConfig", json=body).json() == {"is_success": True}
    saved = http.get(f"{CONFIGS}/testConfig").json()
    assert (saved["worker_server_num"], saved["train_url"]) == (2, None)
    refused(http.put(f"{CONFIGS}/testConfig", json={**body, "worker_server_num": 9}), "ModelArts.0104", 400)
    refused(http.put(f"{CONFIGS}/other", json=body), "ModelArts.0102", 404)
    assert "config_name" in refused(http.put(f"{CONFIGS}/testConfig", json=EXAMPLE), "ModelArts.0107", 400)
    assert http.delete(f"{CONFIGS}/testConfig").json() == {"is_success": True}
    refused(http.delete(f"{CONFIGS}/testConfig"), "ModelArts.0102", 404)
    refused(http.get(f"{CONFIGS}/testConfig"), "ModelArts.0102", 404)


def test_lists_are_paged_sorted_and_searched(http, clock):
    for name in ("b", "a", "c"):
        http.post(CONFIGS, json={**EXAMPLE, "config_name": name, "config_desc": f"the {name}"})
        clock.advance(1)

    def names(**params):
        body = http.get(CONFIGS, params=params).json()
        return [config["config_name"] for config in body["configs"]], body["config_total_count"]

    assert names() == (["c", "a", "b"], 3)
    assert names(order="asc", sortBy="config_name", per_page=2) == (["a", "b"], 3)
    assert names(order="asc", sortBy="config_name", per_page=2, page=2) == (["c"], 3)
    assert names(search_content="the b") == (["b"], 1)
    assert names(config_type="sample") == ([], 0)
    for params in ({"per_page": 0}, {"per_page": 1001}, {"page": 0}, {"sortBy": "x"}, {"order": "up"}):
        message = refused(http.get(CONFIGS, params=params), "ModelArts.0104", 400)
        assert next(iter(params)) in message


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
    names = {"project_id": "team", "config_name": "none", "job_id": "1", "version_id": "1"}
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
                    response = http.request(method, path.format(**names | {name: "x"}), params={"log_file": "a"})
                    message = refused(response, "ModelArts.0104", 400)
                    assert name in message or "requestBody" in operation  # a missing body is reported first
                elif parameter["in"] == "query" and any(word in types for word in ("integer", "enum", "const")):
                    response = http.request(method, known, params={"log_file": "worker-0.log", name: "?"})
                    assert name in refused(response, "ModelArts.0104", 400)
            if "requestBody" in operation:
                refused(http.request(method, known, content=b"{"), "ModelArts.0104", 400)
            response = http.request(method, known, headers={"Authorization": ""})
            refused(response, "ModelArts.0201", 401)
            refused(http.request(method, f"{known}/", headers={"Authorization": ""}), "ModelArts.0201", 401)


def test_resources_engines_and_algorithms_are_listed(http):
    specs = http.get("/v1/team/job/resource-specs", params={"job_type": "train"}).json()
    assert specs["spec_total_count"] == 3
    assert [(s["spec_id"], s["spec_code"], s["max_num"], s["no_resource"]) for s in specs["specs"]] == [
        (0, "tandem.learners", 1, False),
        (1, "tandem.cpu.1", 2, False),
        (2, "tandem.cpu.2", 1, True),
    ]
    engines = http.get("/v1/team/job/ai-engines").json()["engines"]
    assert [(e["engine_id"], e["engine_type"], e["engine_name"]) for e in engines] == [
        (1, 3, "Ray"),
        (2, 10, "PyTorch"),
    ]
    algorithms = http.get("/v1/team/built-in-algorithms", params={"order": "asc"}).json()
    assert [a["model_name"] for a in algorithms["models"]] == [
        "RL on trajectory groups (CISPO)",
        "RL on trajectory groups (PPO)",
    ]
    parameters = {p["label"]: p for p in json.loads(algorithms["models"][0]["parameter"])}
    assert parameters["model_name"]["required"]
    assert parameters["batch_size"] == {"label": "batch_size", "value": "8", "required": False}
    assert "loss_fn" not in parameters
    assert "kl_penalty_coef" in parameters
    found = http.get("/v1/team/built-in-algorithms", params={"search_content": "ppo"}).json()
    assert (found["model_total_count"], found["models"][0]["model_id"]) == (1, 2)
