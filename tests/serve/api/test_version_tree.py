"""The tree of a model's versions: parents, branches, runs, forks, and what is gone; keeping versions; downloads."""

from datetime import timedelta

import pytest

from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import TINY, RetentionConfig
from tandem.cluster.jobs.job import PolicyVersion
from tandem.serve.api.version_runs import NEWEST_SHOWN
from tandem.serve.jobs.sweeping import apply_retention
from tandem.serve.keys import create_key
from tandem.serve.store.policies.lineage import ForkSource
from tandem.serve.store.tables.training import JobRow, ModelRow, VersionRow

BASE = "tandem/tiny"


@pytest.fixture
def train(store, add_job, claim):
    """Make versions with these rewards."""

    def train(model, *rewards):
        for reward in rewards:
            add_job(model)
            job = claim()
            version = PolicyVersion(model.id, job.next_step, f"{job.next_step:064}")
            store.claims.complete(job, version, {"reward": float(reward)})

    return train


@pytest.fixture
def tree(http):
    def tree(model, **params):
        return http.get(f"/v1/preview/models/{model.id}/tree", params=params).json()

    return tree


def spans(page):
    """Return each item as (first step, last step, step of its parent)."""
    return [(item["first_step"], item["last_step"], item["parent"] and item["parent"]["step"]) for item in page["data"]]


def test_a_version_follows_the_one_its_job_started_from(store, tree, add_model, train, clock):
    model = add_model()
    train(model, 0.1, 0.9, 0.3)
    store.versions.delete(model.id, "team", [3])
    clock.advance(60)
    train(model, 0.4)
    store.lineage.add_import(model.id, "team", 7, "a" * 64, {"files": ["x"]}, "b" * 64)
    train(model, 0.5)
    page = tree(model)
    assert spans(page) == [(8, 8, 7), (7, 7, None), (4, 4, 2), (3, 3, 2), (2, 2, 1), (1, 1, 0), (0, 0, None)]
    by_step = {item["first_step"]: item for item in page["data"]}
    assert {step: item["version"]["origin"] for step, item in by_step.items()} == {
        **dict.fromkeys((1, 2, 3, 4, 8), "job"),
        7: "import",
        0: "initial",
    }
    assert by_step[3]["state"] == "deleted" and by_step[3]["reason"] == "Deleted by request on 2026-01-01."
    assert [step for step, item in by_step.items() if item["version"]["is_newest"]] == [8]
    assert [step for step, item in by_step.items() if item["version"]["is_best"]] == [2]
    assert by_step[2]["version"]["metrics"] == {"reward": 0.9}
    assert by_step[8]["version"]["job_id"] == store.jobs.page("team", 1, newest_first=True)[0].id


def test_a_version_whose_row_is_gone_is_known_by_its_job(store, tree, add_model, train):
    model = add_model()
    train(model, 0.1, 0.2)
    store.versions.delete(model.id, "team", [1])
    store.garbage.forget_digest(f"{1:064}")
    gone = tree(model)["data"][1]
    assert (gone["first_step"], gone["state"], gone["version"]["digest"]) == (1, "deleted", None)
    assert gone["version"]["job_kind"] == "rl" and gone["parent"]["step"] == 0


def test_the_parent_of_a_job_of_an_earlier_release_follows_from_its_digest(store, tree, add_model, train, clock):
    model = add_model()
    train(model, 0.1, 0.2)
    store.versions.delete(model.id, "team", [2])
    clock.advance(60)
    train(model, 0.3)
    with store.database.write() as session:
        for job in session.query(JobRow):
            job.start_step = None
    assert spans(tree(model)) == [(3, 3, 1), (2, 2, 1), (1, 1, 0), (0, 0, None)]


def add_line(store, model, rewards):
    """Add a version with each of these rewards and its job, in one transaction."""
    now = store.database.now()
    shared = {"model_id": model.id, "payload_key": "payloads/x", "config": {}, "body_sha256": "0" * 64}
    with store.database.write() as session:
        for step, reward in enumerate(rewards, 1):
            version = {"model_id": model.id, "step": step, "digest": f"{step:064}", "created_at": now}
            session.add(VersionRow(metrics={"reward": reward}, **version))
            job = {"id": f"job-{step}", "state": "succeeded", "step": step, "start_step": step - 1}
            session.add(JobRow(created_at=now, **shared, **job))
        session.get(ModelRow, model.number).next_step = len(rewards) + 1


def test_a_thousand_versions_are_a_few_items_that_expand(store, tree, add_model, artifacts_of, clock):
    model = add_model()
    add_line(store, model, [float(step % 100) for step in range(1, 1001)])
    store.versions.keep(model.id, "team", 500, True)
    store.lineage.fork("team", "project", "fork", BASE, ForkSource(model.id, 300))
    apply_retention(store, artifacts_of, RetentionConfig(keep_versions=800), clock.now - timedelta(hours=1))
    page = tree(model)
    newest = [(step, step) for step in range(1000, 1000 - NEWEST_SHOWN, -1)]
    assert [span[:2] for span in spans(page)] == [
        *newest,
        (501, 995),
        (500, 500),
        (301, 499),
        (300, 300),
        (299, 299),
        (201, 298),
        (1, 200),
        (0, 0),
    ]
    assert not page["has_more"] and sum(item["count"] for item in page["data"]) == 1001
    run, retired = page["data"][NEWEST_SHOWN], page["data"][-2]
    assert (run["version"], run["lowest_reward"], run["highest_reward"]) == (None, 0.0, 99.0)
    assert (retired["state"], retired["count"]) == ("retired", 200) and "keep_versions" in retired["reason"]
    assert page["data"][6]["version"]["kept_at"] and page["data"][9]["version"]["is_best"]
    assert [fork["model"] for fork in page["data"][8]["version"]["forks"]] == ["team/project/fork"]

    inside = tree(model, collapse=False, after=f"{model.id}:996", limit=100)
    assert [item["first_step"] for item in inside["data"]] == list(range(995, 895, -1)) and inside["has_more"]
    pages, after = [], None
    while True:
        part = tree(model, limit=4, **({"after": after} if after else {}))
        pages += part["data"]
        after = part["last_id"]
        if not part["has_more"]:
            break
    assert pages == page["data"]


@pytest.fixture
def artifacts_of(services):
    return services.artifacts


def test_forks_are_linked_both_ways_also_after_deletion(store, http, tree, add_model, train):
    model = add_model()
    train(model, 0.1)
    fork = store.lineage.fork("team", "project", "fork", BASE, ForkSource(model.id))
    zero = store.lineage.fork("team", "project", "zero", BASE, ForkSource(model.id, 0))
    train(fork, 0.2)
    [second, first, _] = tree(fork)["data"]
    origin = {"model_id": model.id, "step": 1, "model": "team/project/agent", "exists": True}
    assert first["parent"] == origin and first["version"]["origin"] == "fork"
    assert second["parent"] == {"model_id": fork.id, "step": 1, "model": None, "exists": True}
    assert tree(zero)["data"][0]["parent"] == {**origin, "step": 0}
    store.models.delete(zero.id, "team")
    [one, none] = tree(model)["data"]
    assert one["version"]["forks"] == [{"model_id": fork.id, "model": "team/project/fork", "deleted": False}]
    assert none["version"]["forks"] == [{"model_id": zero.id, "model": "team/project/zero", "deleted": True}]
    store.models.delete(model.id, "team")
    assert tree(fork)["data"][1]["parent"] == {**origin, "exists": False}


def test_a_kept_version_is_not_deleted_until_it_is_released(http, add_model, train):
    model = add_model()
    train(model, 0.1, 0.2)
    url = f"/v1/preview/models/{model.id}/checkpoints"
    kept = http.put(f"{url}/1/keep").json()
    assert kept["kept_at"] and kept["step"] == 1
    refused = http.request("DELETE", url, json={"steps": [1, 2]})
    assert refused.status_code == 409 and refused.json()["error"]["code"] == "version_kept"
    assert "Release it first" in refused.json()["error"]["message"]
    assert http.delete(f"/v1/preview/models/{model.id}").status_code == 409
    assert [one["step"] for one in http.get(url).json()["data"]] == [1, 2], "nothing was deleted"
    assert http.delete(f"{url}/1/keep").json()["kept_at"] is None
    assert http.request("DELETE", url, json={"steps": [1, 2]}).json()["deleted_count"] == 2
    assert http.put(f"{url}/1/keep").status_code == 404
    assert http.put(f"{url}/0/keep").status_code == 422


@pytest.fixture
def adapter(store, services, add_model):
    """The path of the adapter of a model's version 1, which has files."""
    model = add_model()
    digest = ResolvedBaseModel(TINY).write_initial_version(services.artifacts)
    store.lineage.add_import(model.id, "team", 1, digest, {}, "b" * 64)
    return f"/v1/preview/models/{model.id}/versions/1/adapter"


def test_a_version_has_the_sizes_of_its_files(http, adapter, services):
    details = http.get(adapter.removesuffix("versions/1/adapter") + "checkpoints/1").json()
    sizes = services.artifacts.checkpoint_sizes(details["digest"])
    assert details["adapter_bytes"] == sizes["adapter_model.safetensors"] + sizes["adapter_config.json"] > 1000
    assert details["origin"]["kind"] == "import" and not details["has_optimizer"]
    assert http.get(adapter.removesuffix("versions/1/adapter") + "checkpoints/2").status_code == 404


def ticket(http, path):
    return http.post("/v1/preview/downloads", json={"path": path}).json()["url"]


def test_a_ticket_downloads_one_path_without_a_key(app, http, adapter, store, clock):
    whole = http.get(adapter).content
    url = ticket(http, adapter)
    http.headers.pop("Authorization")
    assert http.get(f"/{url}").content == whole
    assert http.get(f"/{url}", headers={"Range": "bytes=5-9"}).content == whole[5:10]
    for other in (url.replace("/1/", "/0/", 1), url[:-2] + ("AA" if url[-2:] != "AA" else "BB")):
        refused = http.get(f"/{other}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "url_invalid")
    assert http.delete(f"/{url.replace('/versions/1/adapter', '')}").status_code == 401, "tickets only read"
    clock.advance(601)
    assert http.get(f"/{url}").json()["error"]["code"] == "url_expired"


def test_a_ticket_permits_what_its_key_permits(http, adapter, store):
    for entity, role, status, code in (
        ("team", "infer", 403, "insufficient_role"),
        ("others", "train", 404, "model_not_found"),
    ):
        http.headers["Authorization"] = f"Bearer {create_key(store, 'k', entity, role)}"
        url = ticket(http, adapter)
        http.headers.pop("Authorization")
        answer = http.get(f"/{url}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    http.headers["Authorization"] = f"Bearer {create_key(store, 'short-lived', 'team', 'train')}"
    url = ticket(http, adapter)
    http.headers.pop("Authorization")
    [row] = [row for row in store.keys.all("team") if row.name == "short-lived"]
    store.keys.revoke(row.id)
    assert http.get(f"/{url}").status_code == 401


@pytest.mark.parametrize("path", ["/v1/preview/models", "/v1/preview/keys", "https://elsewhere/x", "", "../x"])
def test_only_downloads_have_tickets(http, path):
    assert http.post("/v1/preview/downloads", json={"path": path}).status_code == 422
