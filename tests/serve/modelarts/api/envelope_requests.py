"""Requests to the training-job-configs API, and their errors."""

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
