"""GET /v1/preview/overview: every model with its state, recent rewards and last error."""

import pytest

from tandem.cluster.jobs.job import PolicyVersion
from tandem.serve.keys import create_key
from tandem.serve.store.overview import NUM_RECENT

OVERVIEW = "/v1/preview/overview"
pytestmark = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def train(store, add_job, claim):
    """Make the next version of a model, with these metrics."""

    def train(model, **metrics):
        add_job(model)
        claimed = claim()
        version = PolicyVersion(model.id, claimed.next_step, f"{model.name}{claimed.next_step}")
        store.claims.complete(claimed, version, {name.replace("__", "/"): value for name, value in metrics.items()})

    return train


def test_a_model_without_jobs_is_idle(http, add_model):
    add_model()
    [model] = http.get(OVERVIEW).json()["data"]
    assert (model["project"], model["name"], model["activity"], model["step"]) == ("project", "agent", "idle", 0)
    assert model["recent"] == [] and model["metric"] is None and model["version_created_at"] is None
    assert model["last_error"] is None


def test_recent_rewards_come_in_order_and_are_limited(http, add_model, train):
    model = add_model()
    for step in range(NUM_RECENT + 2):
        train(model, reward=step / 10)
    [shown] = http.get(OVERVIEW).json()["data"]
    assert shown["metric"] == "reward" and shown["step"] == NUM_RECENT + 2
    assert shown["recent"] == [[step, pytest.approx((step - 1) / 10)] for step in range(3, NUM_RECENT + 3)]


def test_a_model_of_supervised_jobs_shows_its_loss(http, add_model, train):
    train(add_model(), sft__loss=1.5)
    [shown] = http.get(OVERVIEW).json()["data"]
    assert shown["metric"] == "sft/loss" and shown["recent"] == [[1, 1.5]]


def test_activity_and_the_last_error(http, store, add_model, add_job, claim):
    model = add_model()
    failed = add_job(model)
    add_job(model)
    assert http.get(OVERVIEW).json()["data"][0]["activity"] == "queued"
    store.claims.fail(claim(), "The learner ran out of memory.")
    [shown] = http.get(OVERVIEW).json()["data"]
    assert shown["activity"] == "queued" and shown["num_queued"] == 1
    assert shown["last_error"]["job_id"] == failed.id and "memory" in shown["last_error"]["message"]
    claimed = claim()
    [shown] = http.get(OVERVIEW).json()["data"]
    assert shown["activity"] == "training" and shown["num_queued"] == 0 and shown["last_error"] is not None
    store.claims.complete(claimed, PolicyVersion(model.id, 1, "a"), {"reward": 1.0})
    [shown] = http.get(OVERVIEW).json()["data"]
    assert shown["activity"] == "idle" and shown["last_error"] is None


def test_pages_search_and_entities(http, store, add_model):
    names = [f"agent-{number}" for number in range(5)]
    for name in names:
        add_model(name)
    add_model("agent-9", entity="others")
    first = http.get(OVERVIEW, params={"limit": 2}).json()
    assert [model["name"] for model in first["data"]] == ["agent-4", "agent-3"] and first["has_more"]
    rest = http.get(OVERVIEW, params={"after": first["last_id"]}).json()
    assert [model["name"] for model in rest["data"]] == ["agent-2", "agent-1", "agent-0"] and not rest["has_more"]
    found = http.get(OVERVIEW, params={"search": "T/AGENT-3"}).json()["data"]
    assert [model["name"] for model in found] == ["agent-3"]
    assert http.get(OVERVIEW, params={"search": "%"}).json()["data"] == []
    key = create_key(store, "k", "others")
    [other] = http.get(OVERVIEW, headers={"Authorization": f"Bearer {key}"}).json()["data"]
    assert other["name"] == "agent-9"
