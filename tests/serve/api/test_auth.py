import hashlib
import re

import pytest

from tandem.serve.keys import create_key, revoke_key


def test_a_key_works_until_it_is_revoked(http, store, key):
    assert http.get("/v1/models").status_code == 200
    other = create_key(store, "other", "team")
    assert revoke_key(store, key)
    assert http.get("/v1/models").status_code == 401
    assert http.get("/v1/models", headers={"Authorization": f"Bearer {other}"}).status_code == 200
    assert revoke_key(store, next(k.id for k in store.keys.all() if k.name == "other")), (
        "a key can be revoked by its id"
    )
    assert http.get("/v1/models", headers={"Authorization": f"Bearer {other}"}).status_code == 401
    assert not revoke_key(store, "tdm_unknown")


def test_keys_are_long_random_and_not_stored(store, tmp_path):
    keys = {create_key(store, "k", "team") for _ in range(5)}
    assert len(keys) == 5
    assert all(re.fullmatch(r"tdm_[0-9a-f]{64}", key) for key in keys)
    store.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("tandem.db*"))
    assert not any(key.encode() in stored for key in keys)


@pytest.mark.parametrize("entity", ["preview", "", "a/b", "a:b", "a b", "a\n", "x" * 129, "-a"])
def test_an_entity_can_be_part_of_a_name(store, entity):
    with pytest.raises(ValueError, match="Entity"):
        create_key(store, "k", entity)


def test_there_are_three_roles(store):
    with pytest.raises(ValueError, match="infer, train, admin"):
        create_key(store, "k", "team", "root")


def test_a_role_that_this_release_does_not_know_may_nothing(http, store):
    store.keys.add("k", "team", hashlib.sha256(b"tdm_x").hexdigest(), "owner")
    assert http.get("/v1/models", headers={"Authorization": "Bearer tdm_x"}).status_code == 403


def test_another_entitys_model_is_not_sampled(http, store, model, engine):
    http.headers["Authorization"] = f"Bearer {create_key(store, 'stranger', 'others')}"
    for path, body in (
        ("/v1/chat/completions", {"model": "team/project/agent", "messages": []}),
        ("/v1/completions", {"model": "wandb-artifact:///team/project/agent", "prompt": ""}),
    ):
        assert http.post(path, json=body).status_code == 404
    assert engine.asked == []
