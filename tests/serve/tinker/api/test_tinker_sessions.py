"""Sessions, keys and models over HTTP."""

import pytest

from tandem.serve.keys import create_key

BASE = "tandem/tiny"


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": "tml-KEY"},
        {"X-API-Key": "KEY"},
        {"Authorization": "Bearer tml-KEY"},
        {"Authorization": "Bearer KEY"},
    ],
)
def test_a_key_with_and_without_the_prefix(http, key, headers):
    del http.headers["Authorization"]
    sent = {name: value.replace("KEY", key) for name, value in headers.items()}
    assert http.get("/api/v1/healthz", headers=sent).json() == {"status": "ok"}


def test_the_prefix_and_the_header_belong_to_these_routes_alone(http, key):
    del http.headers["Authorization"]
    assert http.get("/v1/preview/me", headers={"X-API-Key": f"tml-{key}"}).status_code == 401
    assert http.get("/v1/preview/me", headers={"Authorization": f"Bearer tml-{key}"}).status_code == 401
    refused = http.get("/api/v1/healthz")
    assert refused.status_code == 401 and "x-api-key: tml-tdm_..." in refused.json()["error"]["message"]


def test_a_session_lives_until_it_is_finished(post, session, http):
    assert post("session_heartbeat", session_id=session) == {"type": "session_heartbeat"}
    post(f"sessions/{session}/finish", reason={"type": "success"}, detail=None)
    assert post("session_heartbeat", 410, session_id=session)["error"]["code"] == "session_finished"
    refused = post("create_model", 410, session_id=session, model_seq_id=0, base_model=BASE)
    assert refused["error"]["code"] == "session_finished"
    assert post("session_heartbeat", 404, session_id="other")["error"]["code"] == "session_not_found"


def test_a_repeated_request_opens_one_session(http):
    body, headers = {"tags": [], "user_metadata": None, "sdk_version": "0.38.0"}, {"X-Idempotency-Key": "once"}
    ids = {http.post("/api/v1/create_session", json=body, headers=headers).json()["session_id"] for _ in range(2)}
    assert len(ids) == 1


def test_only_who_may_train_hears_that_the_output_layer_is_not_trained(post, http, store):
    body = {"tags": [], "sdk_version": "0.38.0"}
    assert "train_unembed" in post("create_session", **body)["warning_message"]
    http.headers["Authorization"] = f"Bearer {create_key(store, 'k', 'team', 'infer')}"
    assert "warning_message" not in post("create_session", **body)


def test_client_settings_events_and_capabilities(post, http):
    config = post("client/config", sdk_version="0.38.0")
    assert (config["pjwt_auth_enabled"], config["use_pyqwest_transport"]) == (False, False)
    assert "refresh_interval_sec" in post("client/dynamic_config", sdk_version="0.38.0")
    told = {"platform": "x", "sdk_version": "0", "session_id": "s", "process_uuid": "p"}
    assert post("telemetry", events=[{"event": "GENERIC_EVENT"}], **told) == {"status": "accepted"}
    [model] = http.get("/api/v1/get_server_capabilities").json()["supported_models"]
    assert model == {"model_name": BASE, "max_context_length": 256, "trainable": True, "sampleable": True}


def test_a_model_has_the_rank_the_modules_and_the_seed_that_were_asked_for(post, session, services, http):
    lora = {"rank": 4, "seed": 7, "train_mlp": False}
    made = post("create_model", session_id=session, model_seq_id=3, base_model=BASE, lora_config=lora)
    assert made["model_id"] == f"{session}:train:3"
    assert post("retrieve_future", request_id=made["request_id"]) == {
        "model_id": made["model_id"],
        "type": "create_model",
    }
    [settings] = services.preparation.made
    assert (settings.r, settings.alpha, settings.seed) == (4, 32, 7)
    assert settings.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    info = post("get_info", model_id=made["model_id"])
    assert (info["lora_rank"], info["model_data"]["model_name"]) == (4, BASE)
    assert ":" not in info["model_data"]["tokenizer_id"]
    [model] = http.get("/v1/preview/models").json()["data"]
    assert (model["project"], model["name"]) == ("tinker", f"{session}-train-3")


def test_a_seed_that_is_left_out_is_another_for_each_model_and_the_same_for_a_repeat(post, session, services):
    lora = {"rank": 8}
    for seq in (0, 0, 1):
        post("create_model", session_id=session, model_seq_id=seq, base_model=BASE, lora_config=lora)
    first, again, other = (settings.seed for settings in services.preparation.made)
    assert first == again != other


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"base_model": "gpt-7"}, "body.base_model"),
        ({"lora_config": {"rank": 64}}, "body.lora_config.rank"),
        ({"lora_config": {"rank": 8, "train_mlp": False, "train_attn": False}}, "body.lora_config"),
        ({"lora_config": {"rank": 0}}, "body.lora_config.rank"),
        ({"optimizer_config": {"type": "dimuon", "version": 1}}, "body.optimizer_config.type"),
        ({"surprise": 1}, "body.surprise"),
    ],
)
def test_models_that_cannot_be_made(post, session, changes, place):
    body = {"session_id": session, "model_seq_id": 0, "base_model": BASE, "lora_config": {"rank": 8}, **changes}
    assert post("create_model", 422, **body)["error"]["param"] == place


def test_a_number_stands_for_one_model(post, session, run):
    body = {"session_id": session, "model_seq_id": 0, "base_model": BASE}
    refused = post("create_model", 400, **body, lora_config={"rank": 4, "seed": 3})
    assert refused["error"]["code"] == "sequence_number_reused"


def test_who_may_only_infer_cannot_train(post, session, http, store):
    http.headers["Authorization"] = f"Bearer {create_key(store, 'k', 'team', 'infer')}"
    refused = post("create_model", 403, session_id=session, model_seq_id=0, base_model=BASE)
    assert refused["error"]["code"] == "insufficient_role"
    post("session_heartbeat", session_id=session)


def test_results_come_one_by_one_and_calls_of_training_stay(post, run):
    assert post("retrieve_futures", 422, target={})["error"]["code"] == "not_available"
    assert post("cancel_future", 404, request_id=f"call/{run}/1")["error"]["code"] == "request_not_found"
    assert post("cancel_future", 422, request_id=f"call/{run}/0")["error"]["code"] == "not_available"
