"""Saving and loading over HTTP."""

import pytest


@pytest.fixture
def result(post):
    """Send a call, and return its result."""

    def result(route, /, **body):
        return post("retrieve_future", request_id=post(route, **body)["request_id"])

    return result


@pytest.fixture
def saved(run, result, executor):
    """A saved state of the run."""
    executor.start()
    return result("save_weights", model_id=run, seq_id=1, path="first", user_metadata={"epoch": "1"})["path"]


def test_a_saved_state_has_an_address(run, saved, tinker_store):
    assert saved == f"tinker://{run}/weights/first"
    found = tinker_store.checkpoints.resolve("team", saved)
    assert (found.has_optimizer, found.user_metadata) == (True, {"epoch": "1"})


def test_saving_for_sampling_makes_a_version_and_with_a_number_a_sampler(
    run, saved, session, result, tinker_store, http
):
    named = result("save_weights_for_sampler", model_id=run, seq_id=2, path="a", ttl_seconds=3600)
    assert named["path"] == f"tinker://{run}/sampler_weights/a"
    body = {"model_id": run, "seq_id": 3, "sampling_session_seq_id": 5}
    sampler = result("save_weights_for_sampler", **body)["sampling_session_id"]
    assert tinker_store.samplers.get("team", sampler).step == 2
    repeated = result("save_weights_for_sampler", **body | {"sampling_session_seq_id": 6})  # as the SDK counts it up
    assert repeated["sampling_session_id"] == sampler
    [model] = http.get("/v1/preview/models").json()["data"]
    steps = [item["step"] for item in http.get(f"/v1/preview/models/{model['id']}/checkpoints").json()["data"]]
    assert steps == [1, 2]


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("save_weights", {"path": "../x"}, "path"),
        ("save_weights", {"path": "x", "ttl_seconds": 5}, "ttl_seconds"),
        ("save_weights_for_sampler", {"sampling_session_seq_id": 0, "kind": "inflight"}, "kind"),
        ("save_weights_for_sampler", {"sampling_session_seq_id": 0, "path": "x"}, "path"),
        ("save_weights_external", {"path": "x", "age_encryption_recipients": ["age1"]}, "age_encryption_recipients"),
        ("save_weights_external", {"path": "x", "ttl_seconds": 5}, "ttl_seconds"),
        ("load_weights", {"path": "tinker://nobody/weights/x", "optimizer": False}, "There is no checkpoint"),
        ("load_weights", {"path": "/etc/passwd", "optimizer": False}, "path"),
        ("load_weights", {"path": "tinker://a/weights/x", "optimizer": False, "base_model": "x"}, "base_model"),
        ("load_weights", {"path": "tinker://a/weights/x", "optimizer": True, "weights_access_token": "t"}, "token"),
    ],
)
def test_what_cannot_be_saved_or_loaded_is_a_result_of_its_call(run, executor, result, path, body, place):
    executor.start()
    refused = result(path, model_id=run, seq_id=1, **body)
    assert refused["category"] == "user" and place in refused["error"]
    assert "path" in result("save_weights", model_id=run, seq_id=2, path="x")


def test_a_state_is_loaded_into_its_model(run, saved, result, executor):
    loaded = result("load_weights", model_id=run, seq_id=2, path=saved, optimizer=True)
    assert loaded == {"path": saved, "model_id": run, "type": "load_weights"}
    assert executor.executed[-1][3]["optimizer"] is True


def test_a_model_is_made_from_a_state(saved, session, post, tinker_store):
    body = {"session_id": session, "model_seq_id": 1, "path": saved, "optimizer": True}
    made = post("load_weights", **body)
    assert made == post("load_weights", **body)
    answer = post("retrieve_future", request_id=made["request_id"])
    assert (answer["type"], answer["model_id"]) == ("load_weights", f"{session}:train:1")
    assert tinker_store.runs.get("team", made["model_id"]).anchor_has_optimizer
    assert post("get_info", model_id=made["model_id"])["lora_rank"] == 8


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"path": "tinker://nobody/weights/x"}, 404, "checkpoint_not_found"),
        ({"path": "x"}, 400, "invalid_tinker_path"),
        ({"base_model": "other"}, 422, "invalid_request"),
        ({"session_id": "other"}, 404, "session_not_found"),
        ({"optimizer_config": {"type": "dimuon"}}, 422, "optimizer_not_served"),
        ({"weights_access_token": "x"}, 422, "not_available"),
        ({"model_seq_id": None}, 422, "invalid_request"),
    ],
)
def test_models_that_cannot_be_made_from_a_state(saved, session, post, changes, status, code):
    body = {"session_id": session, "model_seq_id": 1, "path": saved, "optimizer": False, **changes}
    assert post("load_weights", status, **body)["error"]["code"] == code
