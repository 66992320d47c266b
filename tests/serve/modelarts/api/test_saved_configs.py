"""Saved configurations: their rules, changes and lists."""

import pytest
from envelope_requests import ALGORITHM, CONFIGS, EXAMPLE, changed, refused

from tandem.serve.keys import create_key


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
