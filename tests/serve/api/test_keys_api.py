"""An entity's admins manage its keys over HTTP."""

import uuid

import pytest

from tandem.serve.keys import add_key, create_key

KEYS = "/v1/preview/keys"


@pytest.fixture
def admin(http, store, clock):
    clock.advance(1)  # keys are listed by time
    http.headers["Authorization"] = f"Bearer {create_key(store, 'boss', 'team', 'admin')}"
    clock.advance(1)
    return http


def test_a_key_is_made_shown_once_and_works(admin, store):
    response = admin.post(KEYS, json={"name": "rollouts", "role": "infer"})
    made = response.json()
    assert (made["name"], made["role"], made["entity"], made["revoked_at"]) == ("rollouts", "infer", "team", None)
    assert made["key"].startswith("tdm_")
    listed = admin.get(KEYS)
    assert [key["name"] for key in listed.json()["data"]] == ["tests", "boss", "rollouts"]
    assert made["key"] not in listed.text
    headers = {"Authorization": f"Bearer {made['key']}"}
    assert admin.get("/v1/models", headers=headers).status_code == 200
    assert admin.get("/v1/preview/training-jobs", headers=headers).status_code == 403


def test_a_revoked_key_stays_listed_and_is_refused(admin):
    made = admin.post(KEYS, json={"name": "old", "role": "train"}).json()
    for _ in range(2):
        assert admin.delete(f"{KEYS}/{made['id']}").json() == {"id": made["id"], "revoked": True}
    assert admin.get("/v1/models", headers={"Authorization": f"Bearer {made['key']}"}).status_code == 401
    assert admin.get(KEYS).json()["data"][-1]["revoked_at"] is not None


def test_a_key_does_not_revoke_itself(admin):
    [own] = [key["id"] for key in admin.get(KEYS).json()["data"] if key["name"] == "boss"]
    response = admin.delete(f"{KEYS}/{own}")
    assert (response.status_code, response.json()["error"]["code"]) == (409, "own_key")
    assert admin.get(KEYS).status_code == 200


def test_keys_of_other_entities_are_out_of_reach(admin, store):
    create_key(store, "stranger", "others", "admin")
    [theirs] = [row.id for row in store.keys.all("others")]
    for id in (theirs, uuid.uuid4()):
        assert admin.delete(f"{KEYS}/{id}").status_code == 404
    assert admin.get(KEYS, params={"after": theirs}).status_code == 422
    refused = admin.post(KEYS, json={"name": "k", "role": "train", "entity": "others"})
    assert refused.status_code == 422 and "entity" in refused.json()["error"]["message"]
    assert store.keys.all("others")[0].revoked_at is None


@pytest.mark.parametrize("changes", [{"role": "root"}, {"role": None}, {"name": ""}, {"name": "a\u0000"}, {"x": 1}])
def test_a_bad_request_makes_no_key(admin, store, changes):
    before = len(store.keys.all())
    assert admin.post(KEYS, json={"name": "k", "role": "infer", **changes}).status_code == 422
    assert len(store.keys.all()) == before


def test_keys_are_paged(admin):
    first = admin.get(KEYS, params={"limit": 1}).json()
    assert ([key["name"] for key in first["data"]], first["has_more"]) == (["tests"], True)
    rest = admin.get(KEYS, params={"limit": 1, "after": first["last_id"]}).json()
    assert ([key["name"] for key in rest["data"]], rest["has_more"]) == (["boss"], False)


def test_a_key_of_any_role_sees_itself(http, store):
    for role in ("infer", "train", "admin"):
        row, key = add_key(store, f"of {role}", "team", role)
        own = http.get("/v1/preview/me", headers={"Authorization": f"Bearer {key}"}).json()
        assert (own["id"], own["name"], own["entity"], own["role"]) == (row.id, f"of {role}", "team", role)
        assert "key" not in own
