"""GET /v1/preview/engines, /v1/preview/learners and /metrics, over states that a test sets."""

from dataclasses import replace

import pytest
from cluster_views import FakeView, answer, engines, learner, learners, life, replica
from fastapi.testclient import TestClient

from tandem.cluster.config import TINY, TandemConfig
from tandem.serve.keys import create_key
from tandem.serve.observing.views import quantile

BASE = "tandem/tiny"
ENGINES, LEARNERS = "/v1/preview/engines", "/v1/preview/learners"
OWN, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def view():
    return FakeView()


@pytest.fixture
def services(services, view):
    return replace(services, cluster=view)


@pytest.fixture
def get(app, store):
    """GET a path as a role of an entity."""

    def get(path, role="train", entity="team", **params):
        headers = {"Authorization": f"Bearer {create_key(store, 'k', entity, role)}"}
        with TestClient(app, "http://tandem", raise_server_exceptions=False, headers=headers) as client:
            return client.get(path, params=params)

    return get


def test_an_engine_that_works(get):
    [base] = get(ENGINES).json()["data"]
    assert (base["id"], base["num_wanted"], base["num_running"], base["fault"]) == (BASE, 1, 1, None)
    [found] = base["replicas"]
    assert found["condition"] == "running" and found["node"] == "10.0.0.1" and found["fault"] is None
    assert (found["requests_running"], found["requests_waiting"], found["kv_usage"]) == (2, 1, 0.25)
    assert (found["slots_used"], found["slots"], found["adapters"], found["adapter_capacity"]) == (1, 4, 0, 16)
    assert base["settings"]["max_model_len"] == 1024 and base["settings"]["max_cpu_loras"] == 16


def test_own_versions_are_named_and_those_of_others_counted(get, view, store, add_model, add_job, claim):
    for entity, digest in (("team", OWN), ("others", OTHER)):
        add_job(add_model(f"{entity}-agent", entity))
        job = claim()
        store.claims.complete(job, type(job.version)(job.model_id, 1, digest), {})
    view.found_engines = {BASE: engines(replica(said=answer(load={"adapters": ["0" * 64, OWN, OTHER]})))}
    response = get(ENGINES)
    [found] = response.json()["data"][0]["replicas"]
    assert [(version["model"], version["step"]) for version in found["own_versions"]] == [
        ("team/project/team-agent", 1)
    ]
    assert (found["adapters"], found["other_versions"]) == (3, 2)
    assert "others" not in response.text and OTHER not in response.text


@pytest.mark.parametrize("condition", ["starting", "not_answering", "stopping"])
def test_a_replica_that_says_nothing_is_listed_with_the_reason(get, view, condition):
    view.found_engines = {BASE: engines(replica(), replica("r2", condition, None))}
    base = get(ENGINES).json()["data"][0]
    silent = base["replicas"][1]
    assert base["num_running"] == 1 and base["num_wanted"] == 2
    assert silent["condition"] == condition and silent["fault"].endswith(".")
    assert silent["kv_usage"] is None and silent["own_versions"] == [] and silent["device"] is None


def test_the_error_itself_is_for_admins(get, view):
    dead = answer(error="The vLLM engine core died. OOM at /secret", load={}) | {"load": None}
    view.found_engines = {BASE: engines(replica("r1", "unhealthy", dead), ended=[life(), life("r9", "lost", None)])}
    tenant, admin = get(ENGINES), get(ENGINES, "admin")
    assert "/secret" not in tenant.text
    base = tenant.json()["data"][0]
    assert "died" in base["replicas"][0]["fault"] and base["num_restarts"] == 2
    assert [ended["ending"] for ended in base["ended"]] == ["died", "lost"]
    shown = admin.json()["data"][0]
    assert shown["replicas"][0]["fault"] == dead["error"]
    assert shown["ended"][0]["sentence"].endswith("/secret") and shown["ended"][1]["sentence"]


def test_a_stop_by_serve_is_no_restart(get, view):
    view.found_engines = {BASE: engines(replica(), ended=[life(ending="stopped", reason=None)])}
    base = get(ENGINES).json()["data"][0]
    assert base["num_restarts"] == 0 and len(base["ended"]) == 1


def test_learners_with_own_and_other_jobs(get, view, add_model, add_job, claim):
    jobs = [add_job(add_model(f"{entity}-agent", entity)).id for entity in ("team", "others")]
    view.found_learners = {
        BASE: learners(learner(), learner(1, None), running_jobs=jobs, publish_s=[0.1, 0.3, 0.2, 4.0])
    }
    response = get(LEARNERS)
    [base] = response.json()["data"]
    assert [job["job_id"] for job in base["own_jobs"]] == jobs[:1] and base["other_jobs"] == 1
    assert jobs[1] not in response.text
    assert [found["is_answering"] for found in base["learners"]] == [True, False]
    assert base["learners"][0]["tokens_per_s"] == 1500.0
    assert base["publications"] == {"count": 4, "last_s": 4.0, "p50_s": 0.2, "p95_s": 4.0}


@pytest.mark.parametrize(
    ("found", "state", "words"),
    [
        (None, "not_answering", "coordinator"),
        (learners(waiting_for="2 GPUs", learners_running=False), "waiting", "2 GPUs"),
        (learners(learners_running=False), "not_started", "next job"),
        (learners(), "running", "free"),
        (learners(running_jobs=["x"]), "running", "1 job"),
        (learners(running_jobs=["x"], running_runs=["y", "z"]), "running", "1 job and 2 training clients"),
    ],
)
def test_the_state_of_learners_is_a_sentence(get, view, found, state, words):
    view.found_learners = None if found is None else {BASE: found}
    [base] = get(LEARNERS).json()["data"]
    assert base["state"] == state and words in base["sentence"]


def test_the_coordinators_error_is_for_admins(get, view):
    view.found_learners = {BASE: learners(last_error="KeyError: /secret", alarm="They disagree.")}
    assert get(LEARNERS).json()["data"][0]["last_error"] is None
    assert get(LEARNERS).json()["data"][0]["alarm"] == "They disagree."
    assert get(LEARNERS, "admin").json()["data"][0]["last_error"] == "KeyError: /secret"


def test_base_models_come_in_pages(get, services, app):
    bases = tuple(TINY.model_copy(update={"name": f"tiny-{i}"}) for i in range(3))
    view = FakeView()
    view.found_engines = {base.name: engines(replica()) for base in bases}
    config = TandemConfig(home=services.config.home, base_models=bases)
    app.state.services = replace(services, config=config, cluster=view)
    first = get(ENGINES, limit=2).json()
    assert [base["id"] for base in first["data"]] == ["tiny-0", "tiny-1"] and first["has_more"]
    second = get(ENGINES, limit=2, after=first["last_id"]).json()
    assert [base["id"] for base in second["data"]] == ["tiny-2"] and not second["has_more"]
    assert get(LEARNERS, after="tiny-9").status_code == 422


def test_a_quantile_is_one_of_the_values():
    assert quantile([], 0.5) is None
    assert quantile([3.0], 0.95) == 3.0
    assert quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.0
    assert quantile(list(range(1, 101)), 0.95) == 95


def test_metrics_are_for_admins_and_in_prometheus_format(get, view):
    view.pages = {
        "n": '# HELP ray_tandem_jobs x\n# TYPE ray_tandem_jobs gauge\nray_tandem_jobs{NodeAddress="n",'
        'base_model="b",state="queued"} 2.0\n'
    }
    assert get("/metrics").status_code == 403
    found = get("/metrics", "admin")
    assert found.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'tandem_jobs{base_model="b",node="n",state="queued"} 2.0' in found.text


@pytest.mark.parametrize("pages", [{}, {"n": None}])
def test_without_an_agent_metrics_are_refused_with_a_sentence(get, view, pages):
    view.pages = pages
    found = get("/metrics", "admin")
    assert found.status_code == 503 and found.json()["error"]["code"] == "metrics_unavailable"


@pytest.mark.parametrize("path", [ENGINES, LEARNERS, "/metrics"])
def test_outside_ray_there_is_a_sentence(get, app, services, path):
    app.state.services = replace(services, cluster=None)
    found = get(path, "admin")
    assert found.status_code == 503 and found.json()["error"]["code"] == "no_cluster"
