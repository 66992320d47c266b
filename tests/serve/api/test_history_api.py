"""The curves of a model."""

import pytest

from tandem.cluster.config import TINY
from tandem.cluster.jobs.job import PolicyVersion
from tandem.rl.probe import FLOAT32
from tandem.serve.keys import create_key

REWARDS = [0.0, 1.0, 0.5, 0.5, -4.0, 0.25, 0.75]


@pytest.fixture
def trained(store, clock, add_model, add_job, claim):
    """Add a model with a version for each reward. Each job waits 2 s and takes 10 s."""

    def trained(rewards=REWARDS, name="agent"):
        model = add_model(name)
        for step, reward in enumerate(rewards, start=1):
            add_job(model, body=f"{name}{step}".ljust(64, "0"))
            clock.advance(2)
            claimed = claim()
            store.claims.record_event(claimed, "gradient_step", {}, 0)
            clock.advance(10)
            store.claims.complete(claimed, PolicyVersion(model.id, step, f"{step}"), {"reward": reward, "own": step})
        return model

    return trained


@pytest.fixture
def history(http):
    def history(model, **query):
        response = http.get(f"/v1/preview/models/{model.id}/history", params=query)
        assert response.status_code == 200, response.text
        return response.json()

    return history


def test_each_version_is_a_point(trained, history, store):
    model = trained([0.5, 1.0])
    found = history(model)
    assert found["model_id"] == model.id and not found["has_more"]
    first, second = found["data"]
    assert (first["step"], first["first_step"], first["num_versions"], first["kind"]) == (1, 1, 1, "rl")
    assert second["metrics"]["reward"] == [1.0, 1.0, 1.0]
    assert second["metrics"]["job/seconds"] == [10.0] * 3
    assert second["metrics"]["job/queued_seconds"] == [2.0] * 3
    assert second["metrics"]["job/gradient_steps"] == [1.0] * 3
    assert "own" not in second["metrics"] and "own" in found["metrics"]
    assert store.jobs.get(second["job_id"], "team").step == 2


def test_many_versions_are_thinned_with_their_spread(trained, history):
    found = history(trained(), points=3)
    assert [(p["first_step"], p["step"], p["num_versions"]) for p in found["data"]] == [(1, 2, 2), (3, 4, 2), (5, 7, 3)]
    assert [p["metrics"]["reward"] for p in found["data"]] == [[0.0, 0.5, 1.0], [0.5, 0.5, 0.5], [-4.0, -1.0, 0.75]]
    assert not found["has_more"]


def test_pages_and_ranges(trained, history):
    model = trained()
    first = history(model, limit=3)
    assert [p["step"] for p in first["data"]] == [1, 2, 3] and first["has_more"]
    rest = history(model, limit=30, after=first["last_id"])
    assert [p["step"] for p in rest["data"]] == [4, 5, 6, 7] and not rest["has_more"]
    newest = history(model, limit=3, order="desc")
    assert [p["step"] for p in newest["data"]] == [7, 6, 5] and newest["has_more"]
    rest = history(model, limit=9, order="desc", after=newest["last_id"])
    assert [p["step"] for p in rest["data"]] == [4, 3, 2, 1]
    thinned = history(model, points=3, order="desc")["data"]
    assert [(p["first_step"], p["step"]) for p in thinned] == [(6, 7), (4, 5), (1, 3)]
    assert [p["step"] for p in history(model, first_step=2, last_step=4)["data"]] == [2, 3, 4]
    assert [p["step"] for p in history(model, first_step=3, last_step=6, points=2)["data"]] == [4, 6]


def test_metrics_are_chosen_and_unknown_ones_refused(trained, history, http):
    model = trained()
    found = history(model, metric=["own", "reward", "loss/entropy"], limit=1)
    assert found["data"][0]["metrics"] == {"own": [1.0, 1.0, 1.0], "reward": [0.0, 0.0, 0.0]}
    url = f"/v1/preview/models/{model.id}/history"
    for query in ({"metric": "rewad"}, {"metric": ["own", "x" * 64]}, {"metric": "rewad", "first_step": 100}):
        error = http.get(url, params=query)
        assert (error.status_code, error.json()["error"]["code"]) == (422, "metric_not_found")
        assert error.json()["error"]["param"] == "query.metric" and "reward" in error.json()["error"]["message"]
    assert history(model, metric="own", first_step=100)["data"] == []  # other versions have it
    for query in ({"points": 0}, {"limit": 0}, {"after": "x"}, {"metric": ""}, {"metric": ["reward"] * 65}):
        assert http.get(url, params=query).status_code == 422, query


def test_limits_are_those_of_the_services_own_alarms(trained, history):
    limits = history(trained([1.0]))["limits"]
    assert limits["logprobs/sampled_current_abs_diff_mean"] == FLOAT32.mean
    assert limits["logprobs/sampled_current_abs_diff_max"] == FLOAT32.max
    assert limits["logprobs/engine_learner_abs_diff_max"] == TINY.logprob_tolerance


def test_an_imported_version_has_no_job_and_a_retired_one_stays(trained, history, store):
    model = trained([1.0, 0.5])
    store.lineage.add_import(model.id, "team", 7, "7" * 64, {}, "key")
    points = history(model)["data"]
    assert [(p["step"], p["job_id"] is None) for p in points] == [(1, False), (2, False), (7, True)]
    store.retention.retire(1)
    assert [p["step"] for p in history(model)["data"]] == [1, 2, 7]
    store.versions.delete(model.id, "team", [7])
    assert [p["step"] for p in history(model)["data"]] == [1, 2]


def test_a_model_without_versions_has_an_empty_history(add_model, history):
    assert history(add_model())["data"] == []


def test_evaluations_are_the_logs_of_other_splits(trained, http, store, clock):
    model = trained([1.0, 0.5])
    for split, metrics in (
        ("train", {"reward": 0.1}),
        ("sft", {"training_step": 1.0}),
        ("val", {"reward": 0.2}),
        ("val", {"reward": 0.3, "training_step": 1.0}),
    ):
        store.logs.add(f"{split}{len(metrics)}{metrics.get('reward')}", model.id, "team", split, "", metrics)
    url = f"/v1/preview/models/{model.id}/evaluations"
    page = http.get(url, params={"limit": 1}).json()
    assert [(e["split"], e["step"], e["metrics"]["reward"]) for e in page["data"]] == [("val", 1, 0.3)]
    rest = http.get(url, params={"after": page["last_id"]}).json()
    assert [(e["split"], e["step"], e["metrics"]["reward"]) for e in rest["data"]] == [("val", 2, 0.2)]
    assert not rest["has_more"]


def test_curves_of_other_entities_are_not_found(trained, http, store):
    model = trained([1.0])
    http.headers["Authorization"] = f"Bearer {create_key(store, 'k', 'others')}"
    for path in ("history", "evaluations"):
        assert http.get(f"/v1/preview/models/{model.id}/{path}").status_code == 404
