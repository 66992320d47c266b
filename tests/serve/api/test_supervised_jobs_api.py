"""Supervised jobs over HTTP, as openpipe-art's client posts them."""

import uuid
from dataclasses import replace

import pytest

from tandem.rl.supervised.config import SupervisedConfig
from tandem.serve.keys import create_key

JOBS, SFT_JOBS, DATASETS = "/v1/preview/training-jobs", "/v1/preview/sft-training-jobs", "/v1/preview/datasets"
ROW = b'{"messages": [{"role": "user", "content": "1 + 6 = ?"}, {"role": "assistant", "content": "seven"}]}\n'
CLIENT_CONFIG = {
    "batch_size": 2,
    "learning_rate": [2e-4, 1e-4],
    "assistant_turns": "all",
    "metric_logging": {"enabled": True, "target_training_step": 1},
}


@pytest.fixture
def dataset(http):
    return http.post(DATASETS, content=ROW * 3).json()


@pytest.fixture
def post(http, model, dataset):
    def post(headers=None, **changes):
        body = {"model_id": model["id"], "training_data_url": dataset["url"], "config": CLIENT_CONFIG, **changes}
        return http.post(SFT_JOBS, json=body, headers=headers)

    return post


def test_a_job_is_accepted_and_listed_with_the_others(http, post, model, dataset, claim):
    answer = post()
    assert answer.status_code == 200 and answer.json().keys() == {"id"}
    job = http.get(f"{JOBS}/{answer.json()['id']}").json()
    assert (job["kind"], job["state"], job["model_id"]) == ("sft", "queued", model["id"])
    assert [listed["id"] for listed in http.get(JOBS).json()["data"]] == [job["id"]]
    refused = http.delete(f"{DATASETS}/{dataset['id']}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "dataset_in_use")
    claimed = claim()
    assert claimed.id == job["id"]
    assert claimed.config == SupervisedConfig.model_validate(CLIENT_CONFIG)
    assert http.post(f"{JOBS}/{job['id']}/cancel").json()["cancel_requested"]


@pytest.mark.parametrize("config", [None, {}, {"learning_rate": 0.001}, {"batch_size": None, "learning_rate": 1}])
@pytest.mark.parametrize("experimental", [{}, {"experimental_config": None}, {"experimental_config": {}}])
def test_options_may_be_missing(post, claim, config, experimental):
    assert post(config=config, **experimental).status_code == 200
    claimed = claim()
    assert (claimed.config.rows_per_step, claimed.config.assistant_turns) == (2, None)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"config": {"batch_size": 0}}, ["config", "batch_size"]),
        ({"config": {"batch_size": "auto"}}, ["config", "batch_size"]),
        ({"config": {"learning_rate": []}}, ["config", "learning_rate"]),
        ({"config": {"learning_rate": [1e-3, "x"]}}, ["config", "learning_rate", 1]),
        ({"config": {"learning_rate": 2.0}}, ["config", "learning_rate"]),
        ({"config": {"learning_rate": "1e-3"}}, ["config", "learning_rate"]),
        ({"config": {"assistant_turns": "first"}}, ["config", "assistant_turns"]),
        ({"config": {"num_epochs": 2}}, ["config", "num_epochs"]),
        (
            {"config": {"metric_logging": {"target_training_step": -1}}},
            ["config", "metric_logging", "target_training_step"],
        ),
        ({"experimental_config": {"x": 1}}, ["experimental_config"]),
        ({"model_id": "agent"}, ["model_id"]),
        ({"trajectory_groups": []}, ["trajectory_groups"]),
        ({"training_data_url": "https://example.com/train.jsonl"}, ["training_data_url"]),
        ({"training_data_url": "http://169.254.169.254/latest"}, ["training_data_url"]),
        ({"training_data_url": "s3://bucket/train.jsonl"}, ["training_data_url"]),
        ({"training_data_url": "file:///etc/passwd"}, ["training_data_url"]),
        ({"training_data_url": "/etc/passwd"}, ["training_data_url"]),
        ({"training_data_url": "tandem-dataset:///../x"}, ["training_data_url"]),
        ({"training_data_url": "wandb-artifact:///team/data:v0"}, ["training_data_url"]),
        ({"training_data_url": ""}, ["training_data_url"]),
    ],
)
def test_what_cannot_be_trained_is_refused_by_field(http, post, changes, field):
    answer = post(**changes)
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"][0]["loc"] == ["body", *field]
    assert http.get(JOBS).json()["data"] == []


@pytest.mark.parametrize(
    "url", [f"tandem-dataset:///{'0' * 64}", "wandb-artifact:///team/project/agent-sft-data-0123456789ab:v0"]
)
def test_unknown_data_is_not_found(post, url):
    answer = post(training_data_url=url)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "dataset_not_found")


def test_data_and_models_of_others_are_not_found(http, post, store, model, dataset):
    assert post(model_id=str(uuid.uuid4())).json()["error"]["code"] == "model_not_found"
    http.headers["Authorization"] = f"Bearer {create_key(store, 'k', 'others', 'train')}"
    assert post().json()["error"]["code"] == "model_not_found"
    own = {"project": "p", "name": "agent", "base_model": model["base_model"]}
    own_id = http.post("/v1/preview/models", json=own).json()["id"]
    assert post(model_id=own_id).json()["error"]["code"] == "dataset_not_found"


def test_a_repeated_key_makes_one_job(http, post):
    key = {"Idempotency-Key": "again"}
    first = post(key).json()["id"]
    assert post(key).json()["id"] == first
    assert post(key, config={"batch_size": 3}).status_code == 409
    assert [job["id"] for job in http.get(JOBS).json()["data"]] == [first]


def test_the_queue_has_a_limit(post, services, app):
    limits = services.config.limits.model_copy(update={"max_open_jobs": 1})
    app.state.services = replace(services, config=services.config.model_copy(update={"limits": limits}))
    assert post().status_code == 200
    assert post(config={"batch_size": 1}).status_code == 429
