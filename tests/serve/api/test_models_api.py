import json
from dataclasses import replace

import pytest
from serve_fakes import groups, trajectory

from tandem.cluster.config import BaseModelConfig
from tandem.cluster.jobs.job import PolicyVersion

MODELS = "/v1/preview/models"


@pytest.fixture
def train(store, add_job, claim, services, model):
    """Make versions of the model, with files for each digest."""

    def train(*digests):
        for digest in digests:
            (services.artifacts.checkpoints_dir / digest).mkdir(exist_ok=True)
            add_job(store.models.get(model["id"], "team"))
            claimed = claim()
            store.claims.complete(claimed, PolicyVersion(model["id"], claimed.next_step, digest), {"reward": 0.5})

    return train


@pytest.fixture
def files(services):
    return lambda: sorted(path.name for path in services.artifacts.checkpoints_dir.iterdir())


def register(http, **changes):
    body = {"entity": None, "project": "project", "name": "agent", "base_model": "tandem/tiny", **changes}
    return http.post(MODELS, json=body)


def test_a_model_belongs_to_the_entity_of_its_key(http):
    response = register(http)
    assert response.status_code == 200
    body = response.json()
    assert (body["entity"], body["project"], body["name"]) == ("team", "project", "agent")
    assert (body["base_model"], body["run_id"], body["step"]) == ("tandem/tiny", None, 0)
    assert register(http, entity="team", return_existing=True).json() == body
    refused = register(http, entity="others")
    assert refused.status_code == 403
    assert "others" in refused.json()["error"]["message"]
    assert len(http.get(MODELS).json()["data"]) == 1


def test_a_taken_name_is_a_conflict(http, app, services):
    register(http)
    taken = register(http)
    assert taken.status_code == 409
    assert "return_existing" in taken.json()["error"]["message"]
    bases = (*services.config.base_models, BaseModelConfig(name="another/base", path="unused"))
    config = services.config.model_copy(update={"base_models": bases})
    app.state.services = replace(services, config=config, base_models=[base.name for base in bases])
    other_base = register(http, base_model="another/base", return_existing=True)
    assert other_base.status_code == 409
    assert other_base.json()["error"]["param"] == "base_model"


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"name": None}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "agent:step3"}, "name"),
        ({"name": "x" * 129}, "name"),
        ({"name": "nul\x00"}, "name"),
        ({"name": 7}, "name"),
        ({"project": ".."}, "project"),
        ({"entity": "my team"}, "entity"),
        ({"base_model": "no/such-model"}, "base_model"),
        ({"base_model": None}, "base_model"),
        ({"return_existing": "perhaps"}, "return_existing"),
        ({"return_exsting": True}, "return_exsting"),
    ],
)
def test_a_bad_registration_says_where(http, changes, place):
    response = register(http, **changes)
    assert response.status_code == 422
    assert ["body", place] in [fault["loc"] for fault in response.json()["detail"]]
    assert http.get(MODELS).json()["data"] == []


def test_models_page_both_ways(http):
    ids = [register(http, name=f"m{i}").json()["id"] for i in range(5)]
    page = http.get(MODELS, params={"limit": 2}).json()
    assert [m["id"] for m in page["data"]] == ids[:2]
    assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == ("list", ids[0], ids[1], True)
    page = http.get(MODELS, params={"limit": 3, "after": ids[1]}).json()
    assert [m["id"] for m in page["data"]] == ids[2:]
    assert page["has_more"] is False
    assert [m["name"] for m in http.get(MODELS, params={"order": "desc", "limit": 1}).json()["data"]] == ["m4"]
    assert [m["id"] for m in http.get(MODELS, params={"name": "m3"}).json()["data"]] == [ids[3]]
    http.delete(f"{MODELS}/{ids[1]}")
    assert [m["id"] for m in http.get(MODELS, params={"after": ids[1]}).json()["data"]] == ids[2:]
    assert http.get(MODELS, params={"after": "6f0a4b06-26ca-4d3c-8b8a-7d8c2a5c1b3e"}).status_code == 422


def test_checkpoints_page_as_clients_do(http, model, train):
    url = f"{MODELS}/{model['id']}/checkpoints"
    empty = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert http.get(url).json() == empty
    train("a", "b", "c")
    [newest] = http.get(url, params={"limit": 1, "order": "desc"}).json()["data"]
    assert (newest["step"], newest["metrics"], newest["digest"]) == (3, {"reward": 0.5}, "c")
    first = http.get(url, params={"limit": 2}).json()
    assert ([c["step"] for c in first["data"]], first["has_more"]) == ([1, 2], True)
    http.request("DELETE", url, json={"steps": [2]})
    rest = http.get(url, params={"limit": 2, "after": first["last_id"]}).json()
    assert ([c["step"] for c in rest["data"]], rest["has_more"]) == ([3], False)
    assert http.get(f"{MODELS}/{model['id']}").json()["step"] == 3


@pytest.mark.parametrize("after", ["", "x", "1", "x:1", "{id}:", "{id}:x", "{id}:-1", "{id}:99999999999999999999"])
def test_a_cursor_of_another_list_is_refused(http, model, after):
    url = f"{MODELS}/{model['id']}/checkpoints"
    response = http.get(url, params={"after": after.replace("{id}", model["id"])})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["query", "after"]


def test_deleted_checkpoints_lose_their_files_when_nothing_needs_them(http, model, train, files):
    train("aa", "bb", "aa")
    url = f"{MODELS}/{model['id']}/checkpoints"
    answer = http.request("DELETE", url, json={"steps": [1, 2, 9, 1]}).json()
    assert answer == {"deleted_count": 2, "not_found_steps": [9]}
    assert files() == ["aa"]
    assert http.request("DELETE", url, json={"steps": [1, 3]}).json() == {"deleted_count": 1, "not_found_steps": [1]}
    assert files() == []


def test_files_that_cannot_be_removed_are_tried_again(http, model, train, files, services, monkeypatch):
    train("aa", "bb")
    url = f"{MODELS}/{model['id']}/checkpoints"

    def refuse(digest):
        raise PermissionError("read-only")

    with monkeypatch.context() as patch:
        patch.setattr(services.artifacts, "delete_checkpoint", refuse)
        assert http.request("DELETE", url, json={"steps": [1]}).json()["deleted_count"] == 1
    assert files() == ["aa", "bb"]
    http.request("DELETE", url, json={"steps": [2]})
    assert files() == []


@pytest.mark.parametrize(
    "body", [{}, {"steps": None}, {"steps": [-1]}, {"steps": [2**40]}, {"steps": ["a"]}, {"steps": [1] * 10_001}, []]
)
def test_a_bad_deletion_deletes_nothing(http, model, train, body):
    train("a")
    url = f"{MODELS}/{model['id']}/checkpoints"
    assert http.request("DELETE", url, json=body).status_code == 422
    assert len(http.get(url).json()["data"]) == 1


def test_a_deleted_model_takes_everything_with_it(http, model, train, files, blobs, add_job, store):
    train("aa")
    job = http.post("/v1/preview/training-jobs", json={"model_id": model["id"], "trajectory_groups": groups()}).json()
    log = {"model_id": model["id"], "split": "val", "trajectory_groups": groups()}
    http.post(f"{MODELS}/{model['id']}/log", json=log)
    assert len(blobs()) == 2
    # As the client sends it: a JSON content type and no body.
    answer = http.delete(f"{MODELS}/{model['id']}", headers={"Content-Type": "application/json"})
    assert answer.json() == {"model_id": model["id"], "deleted_checkpoints": 1, "deleted_run": False}
    assert (files(), blobs()) == ([], [])
    events = http.get(f"/v1/preview/training-jobs/{job['id']}/events").json()["data"]
    assert [event["type"] for event in events] == ["training_failed"]
    assert http.get(f"{MODELS}/{model['id']}").status_code == 404
    assert http.delete(f"{MODELS}/{model['id']}").status_code == 404


def test_logged_trajectories_are_kept_with_their_mean_reward(http, model, services, blobs):
    url = f"{MODELS}/{model['id']}"
    logged = [{"trajectories": [trajectory(0.0), trajectory(1.0)], "exceptions": [], "metadata": {"task": 7}}]
    body = {
        "model_id": model["id"],
        "split": "val",
        # A log isn't trained, so it may have turns in a form that training rejects.
        "trajectory_groups": [*logged, {"trajectories": [{"exchanges": {"chat_completions": [{}]}, "reward": 2.0}]}],
    }
    entry = http.post(f"{url}/log", json=body).json()
    assert entry["metrics"] == {"num_groups": 2, "num_trajectories": 3, "reward": 1.0}
    http.post(f"{url}/log", json={**body, "split": "train", "trajectory_groups": []})
    entries = http.get(f"{url}/logs").json()["data"]
    assert [(e["split"], e["metrics"].get("reward")) for e in entries] == [("val", 1.0), ("train", None)]
    assert [e["id"] for e in http.get(f"{url}/logs", params={"split": "val"}).json()["data"]] == [entry["id"]]
    assert len(blobs()) == 2
    import zstandard

    blob = services.artifacts.read_blob(f"logs/{entry['id']}.json.zst")
    assert json.loads(zstandard.ZstdDecompressor().decompressobj().decompress(blob)) == body


def test_a_log_names_the_model_of_its_path(http, model, blobs):
    other = register(http, name="other").json()
    body = {"model_id": other["id"], "split": "val", "trajectory_groups": []}
    response = http.post(f"{MODELS}/{model['id']}/log", json=body)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "model_id"]
    assert blobs() == []
