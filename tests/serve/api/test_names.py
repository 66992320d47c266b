"""Names in requests never become paths: nothing outside the artifact store is read, written or removed."""

import uuid
from urllib.parse import quote

import pytest
from serve_fakes import groups

from tandem.cluster.artifacts import job_artifact_key
from tandem.serve.keys import create_key

SECRET = b"nobody may read this"
NAMES = [
    "..", ".", "../outside", "../../outside", "../../../outside", "..%2foutside", "%2e%2e/outside", "%2e%2e%2foutside",
    "%252e%252e%252foutside", "..\\outside", "/etc/passwd", "//etc/passwd", "file:///etc/passwd", "~/.ssh/id_rsa",
    "a\0b", "outside\0.png", "\0", "x" * 5000, "．．/outside", "‥/outside", "..∕outside", "..／outside",
    "\u202e..", "a\nb", "CON", "a:b", "$(id)", "{home}", "*", "?",
]  # fmt: skip


def is_plain(name):
    return name == "CON"


@pytest.fixture
def outside(tmp_path):
    """Put a file into every directory that a name might lead to from the artifact store."""
    for directory in (tmp_path, tmp_path.parent, tmp_path / "artifacts", tmp_path / "artifacts" / "jobs"):
        directory.mkdir(exist_ok=True)
        (directory / "outside").write_bytes(SECRET)
    yield
    (tmp_path.parent / "outside").unlink()


@pytest.fixture
def unchanged(tmp_path, outside):
    """Check that no file was added or removed."""

    def files():
        held = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and ".db" not in path.name}
        return held | {tmp_path.parent / "outside": (tmp_path.parent / "outside").read_bytes()}

    before = []

    def check():
        before.append(files())
        assert before[-1] == before[0]

    return check


def job_of(http, model, key=None):
    headers = {"Idempotency-Key": key} if key else {}
    body = {"model_id": model["id"], "trajectory_groups": groups()}
    return http.post("/v1/preview/training-jobs", json=body, headers=headers)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_in_a_path_is_an_id_or_refused(http, store, model, services, unchanged, name):
    http.headers["Authorization"] = f"Bearer {create_key(store, 'k', 'team', 'admin')}"
    job = job_of(http, model).json()["id"]
    services.artifacts.write_blob(job_artifact_key(job, "picture.png"), b"png")
    unchanged()
    for written in {quote(name, safe=""), quote(name, safe="/%")}:
        for method, path in (
            ("GET", f"/v1/preview/training-jobs/{job}/artifacts/{written}"),
            ("GET", f"/v1/preview/training-jobs/{written}"),
            ("GET", f"/v1/preview/training-jobs/{written}/artifacts"),
            ("POST", f"/v1/preview/training-jobs/{written}/cancel"),
            ("GET", f"/v1/preview/models/{written}"),
            ("DELETE", f"/v1/preview/models/{written}"),
            ("GET", f"/v1/preview/models/{written}/logs"),
            ("DELETE", f"/v1/preview/keys/{written}"),
        ):
            response = http.request(method, path)
            # The client itself resolves dots; the result may be a list, or a path without this method.
            assert response.status_code in (404, 405, 422) or method == "GET", (method, path, response.text)
            assert response.status_code < 500 and SECRET not in response.content, (method, path, response.text)
    unchanged()


@pytest.mark.parametrize("name", [name for name in NAMES if not is_plain(name)], ids=ascii)
def test_a_name_in_a_body_or_a_query_is_refused(http, model, engine, unchanged, name):
    unchanged()
    named = {"project": "project", "name": "agent-2", "base_model": "tandem/tiny"}
    for field in ("entity", "project", "name", "base_model"):
        response = http.post("/v1/preview/models", json={**named, field: name})
        assert response.status_code in (403, 422), (field, response.text)
    log = {"model_id": model["id"], "split": name, "trajectory_groups": groups()}
    assert http.post(f"/v1/preview/models/{model['id']}/log", json=log).status_code == 422
    for asked in (name, f"team/project/{name}", f"{name}/project/agent", f"wandb-artifact:///team/{name}/agent"):
        response = http.post("/v1/chat/completions", json={"model": asked, "messages": []})
        assert response.status_code == 404, (asked, response.text)
    for path in ("/v1/preview/models", "/v1/preview/training-jobs", f"/v1/preview/models/{model['id']}/logs"):
        assert http.get(path, params={"after": name}).status_code == 422
    assert engine.asked == []
    unchanged()


@pytest.mark.parametrize("name", [name for name in NAMES if name.isascii() and name.isprintable()], ids=ascii)
def test_an_idempotency_key_is_only_compared(http, model, blobs, outside, name):
    before = set(blobs())
    response = job_of(http, model, name)
    assert response.status_code in (200, 422)
    made = set(blobs()) - before
    assert made == ({f"payloads/{response.json()['id']}.json.zst"} if response.status_code == 200 else set())


def test_blobs_are_named_by_ids_alone(http, model, blobs):
    job = job_of(http, model, "../../key").json()["id"]
    log = {"model_id": model["id"], "split": "val", "trajectory_groups": groups()}
    entry = http.post(f"/v1/preview/models/{model['id']}/log", json=log).json()["id"]
    assert blobs() == [f"logs/{entry}.json.zst", f"payloads/{job}.json.zst"]
    assert uuid.UUID(job) and uuid.UUID(entry)
