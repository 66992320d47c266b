import re
import uuid

import pytest
from serve_fakes import groups

from tandem.serve.auth import KEY_PREFIX, create_key, revoke_key

OPEN = {"/health", "/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"}


def test_every_route_but_the_open_ones_needs_a_key(app, http):
    guarded = [
        (method, re.sub(r"{\w+}", str(uuid.uuid4()), route.path))
        for route in app.routes
        if route.path not in OPEN
        for method in route.methods
    ]
    assert len(guarded) >= 17
    for authorization in (None, "", "Bearer", "Bearer tdm_wrong", "Basic dGRtOg==", f"Bearer {KEY_PREFIX}"):
        http.headers.pop("Authorization", None)
        headers = {} if authorization is None else {"Authorization": authorization}
        for method, path in guarded:
            # Unreadable bodies: nothing of a request is looked at before its key.
            response = http.request(method, path, headers=headers, content=b"{" if method == "POST" else None)
            assert response.status_code == 401, (authorization, method, path, response.text)
            assert response.headers["WWW-Authenticate"] == "Bearer"
            error = response.json()["error"]
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
            assert "key" in error["message"]


def test_a_key_works_until_it_is_revoked(http, store, key):
    assert http.get("/v1/models").status_code == 200
    other = create_key(store, "other", "team")
    assert revoke_key(store, key)
    assert http.get("/v1/models").status_code == 401
    assert http.get("/v1/models", headers={"Authorization": f"Bearer {other}"}).status_code == 200
    assert revoke_key(store, next(k.id for k in store.list_keys() if k.name == "other")), (
        "a key can be revoked by its id"
    )
    assert http.get("/v1/models", headers={"Authorization": f"Bearer {other}"}).status_code == 401
    assert not revoke_key(store, "tdm_unknown")


def test_keys_are_long_random_and_not_stored(store, tmp_path):
    keys = {create_key(store, "k", "team") for _ in range(5)}
    assert len(keys) == 5
    assert all(re.fullmatch(r"tdm_[\w-]{43}", key) for key in keys)
    store.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("tandem.db*"))
    assert not any(key.encode() in stored for key in keys)


@pytest.mark.parametrize("entity", ["", "a/b", "a:b", "a b", "a\n", "x" * 129, "-a"])
def test_an_entity_can_be_part_of_a_name(store, entity):
    with pytest.raises(ValueError, match="Entity"):
        create_key(store, "k", entity)


def test_other_entities_things_are_not_found(http, store, model, engine):
    job = http.post("/v1/preview/training-jobs", json={"model_id": model["id"], "trajectory_groups": groups()}).json()
    http.headers["Authorization"] = f"Bearer {create_key(store, 'stranger', 'others')}"
    of_model, of_job = f"/v1/preview/models/{model['id']}", f"/v1/preview/training-jobs/{job['id']}"
    log = {"model_id": model["id"], "split": "val", "trajectory_groups": []}
    for method, path, body in (
        ("GET", of_model, None),
        ("DELETE", of_model, None),
        ("GET", f"{of_model}/checkpoints", None),
        ("DELETE", f"{of_model}/checkpoints", {"steps": [1]}),
        ("POST", f"{of_model}/log", log),
        ("GET", f"{of_model}/logs", None),
        ("POST", "/v1/preview/training-jobs", {"model_id": model["id"], "trajectory_groups": groups()}),
        ("GET", of_job, None),
        ("GET", f"{of_job}/events", None),
        ("POST", f"{of_job}/cancel", None),
        ("POST", "/v1/chat/completions", {"model": "team/project/agent", "messages": []}),
        ("POST", "/v1/completions", {"model": "wandb-artifact:///team/project/agent", "prompt": ""}),
    ):
        response = http.request(method, path, json=body)
        assert response.status_code == 404, (method, path, response.text)
        assert response.json()["error"]["message"]
    for path in ("/v1/preview/models", "/v1/preview/training-jobs"):
        assert http.get(path).json()["data"] == []
    assert "team" not in http.get("/v1/models").text
    assert engine.asked == []
