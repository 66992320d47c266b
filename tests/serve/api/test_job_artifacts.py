"""The files of jobs and models over HTTP."""

import uuid

import pytest
from serve_fakes import groups

from tandem.cluster.artifacts import job_artifact_key
from tandem.serve.keys import create_key

JOBS, MODELS = "/v1/preview/training-jobs", "/v1/preview/models"
PNG = b"\x89PNG\r\n\x1a\n..."


@pytest.fixture
def job(http, model, services):
    """A job with two files."""
    job_id = http.post(JOBS, json={"model_id": model["id"], "trajectory_groups": groups()}).json()["id"]
    for name, data in (("sequence_001.png", PNG * 2), ("sequence_000.png", PNG)):
        services.artifacts.write_blob(job_artifact_key(job_id, name), data)
    return job_id


def test_the_files_of_a_job_are_listed_and_read(http, job):
    page = http.get(f"{JOBS}/{job}/artifacts").json()
    assert page["data"] == [
        {"id": "sequence_000.png", "size_bytes": len(PNG)},
        {"id": "sequence_001.png", "size_bytes": 2 * len(PNG)},
    ]
    response = http.get(f"{JOBS}/{job}/artifacts/sequence_000.png")
    assert (response.status_code, response.content) == (200, PNG)
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-content-type-options"] == "nosniff"


def test_the_files_are_paged(http, job):
    first = http.get(f"{JOBS}/{job}/artifacts", params={"limit": 1}).json()
    assert ([item["id"] for item in first["data"]], first["has_more"]) == (["sequence_000.png"], True)
    rest = http.get(f"{JOBS}/{job}/artifacts", params={"after": first["last_id"]}).json()
    assert ([item["id"] for item in rest["data"]], rest["has_more"]) == (["sequence_001.png"], False)


def test_a_job_that_left_nothing_has_an_empty_list(http, model):
    job_id = http.post(JOBS, json={"model_id": model["id"], "trajectory_groups": groups()}).json()["id"]
    assert http.get(f"{JOBS}/{job_id}/artifacts").json()["data"] == []


@pytest.mark.parametrize("name", ["none.png", "..%2f..%2fpayloads", "%2fetc%2fpasswd", "a%00"])
def test_other_names_are_not_found(http, job, name):
    assert http.get(f"{JOBS}/{job}/artifacts/{name}").status_code == 404


def test_only_the_entity_sees_them(http, job, store):
    for headers, status in (
        ({"Authorization": f"Bearer {create_key(store, 'k', 'others')}"}, 404),
        ({"Authorization": ""}, 401),
    ):
        for path in ("", "/sequence_000.png"):
            assert http.get(f"{JOBS}/{job}/artifacts{path}", headers=headers).status_code == status
    assert http.get(f"{JOBS}/{uuid.uuid4()}/artifacts").status_code == 404


def test_they_go_with_their_model(http, job, model, blobs):
    assert f"jobs/{job}/sequence_000.png" in blobs()
    assert http.delete(f"/v1/preview/models/{model['id']}").status_code == 200
    assert blobs() == []


def test_the_files_of_a_model_are_those_of_its_runs(http, model, services, store):
    at = f"{MODELS}/{model['id']}/artifacts"
    assert http.get(at).json()["data"] == []
    services.artifacts.write_blob(job_artifact_key(model["id"], "stacks_20260101T000000.txt"), b"Learner 0")
    assert [item["id"] for item in http.get(at).json()["data"]] == ["stacks_20260101T000000.txt"]
    path = f"{at}/stacks_20260101T000000.txt"
    response = http.get(path)
    assert (response.status_code, response.text) == (200, "Learner 0")
    assert response.headers["content-type"].startswith("text/plain")
    others = {"Authorization": f"Bearer {create_key(store, 'k', 'others')}"}
    assert [http.get(own, headers=others).status_code for own in (at, path)] == [404, 404]
    assert http.get(f"{at}/..%2f..%2fpayloads").status_code == 404
    ticket = http.post("/v1/preview/downloads", json={"path": path})
    assert ticket.status_code == 200, ticket.text
