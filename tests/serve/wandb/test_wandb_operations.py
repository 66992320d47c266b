"""The operations as recorded from wandb 0.31.0 and 0.22.3, and what is answered to others."""

import base64
import hashlib
import json
from pathlib import Path

import pytest
from graphql import parse, validate

from tandem.serve.keys import create_key
from tandem.serve.wandb.execution import snake
from tandem.serve.wandb.schema import SCHEMA

RECORDED = json.loads((Path(__file__).parent / "recorded_operations.json").read_text())
OPERATIONS = RECORDED["0.31.0"]
NAME = "agent-sft-data-0123456789ab"
ROWS = b'{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}\n'


def md5_of(data):
    return base64.b64encode(hashlib.md5(data).digest()).decode()


@pytest.fixture
def call(http):
    """Execute a recorded operation, or a document. Return its data; with `fails`, the messages of its errors."""

    def call(operation, fails=False, headers=None, **variables):
        body = {"query": OPERATIONS.get(operation, operation), "variables": variables}
        response = http.post("/graphql", json=body, headers=headers)
        assert response.status_code == 200, response.text
        answer = response.json()
        if fails:
            return [error["message"] for error in answer["errors"]]
        assert "errors" not in answer, answer
        return answer["data"]

    return call


@pytest.fixture
def begin(call):
    """Begin an artifact and declare its files. Return its id, and the URL for each file and for the manifest."""

    def begin(files, type="dataset", name=NAME, digest=None, **more):
        md5s = {file: md5_of(data) for file, data in files.items()}
        lines = "".join(f"{file}:{md5s[file]}\n" for file in sorted(md5s))
        whole = hashlib.md5(f"wandb-artifact-manifest-v1\n{lines}".encode()).hexdigest()
        new = {
            "entityName": "team", "projectName": "project", "artifactTypeName": type, "artifactCollectionName": name,
            "digest": digest or whole, "aliases": [{"alias": "latest", "artifactCollectionName": name}], **more,
        }  # fmt: skip
        id = call("CreateArtifact", input=new)["createArtifact"]["artifact"]["id"]
        specs = [{"artifactID": id, "name": file, "md5": md5} for file, md5 in md5s.items()]
        edges = call("CreateArtifactFiles", input={"artifactFiles": specs})["createArtifactFiles"]["files"]["edges"]
        urls = {file: edge["node"]["uploadUrl"] for file, edge in zip(files, edges, strict=True)}
        contents = {file: {"digest": md5, "size": len(files[file])} for file, md5 in md5s.items()}
        manifest = json.dumps({"version": 1, "contents": contents}).encode()
        about = {
            "artifactID": id, "name": "wandb_manifest.json", "digest": md5_of(manifest), "entityName": "team",
            "projectName": "project", "runName": "run", "manifestType": "FULL", "includeUpload": True,
        }  # fmt: skip
        made = call("CreateArtifactManifest", **about)["createArtifactManifest"]["artifactManifest"]
        return id, urls, (made["file"]["uploadUrl"], manifest)

    return begin


@pytest.mark.parametrize("version", RECORDED)
def test_every_recorded_operation_is_in_the_schema(version):
    assert len(RECORDED[version]) >= 15
    for name, document in RECORDED[version].items():
        assert validate(SCHEMA, parse(document)) == [], (version, name)


def test_a_client_sees_the_entity_of_its_key(call):
    assert call("Viewer")["viewer"]["entity"] == "team"
    assert call("GetDefaultEntity")["viewer"]["entity"] == "team"
    assert call("ServerFeaturesQuery") == {"serverInfo": {"features": []}}


def test_a_run_can_be_begun_and_is_never_resumed(call):
    resumed = call("RunResumeStatus", project="project", entity="team", name="agent")
    assert resumed["model"]["bucket"] is None
    begun = call("UpsertBucket", project="project", entity="team", name="agent", config="{}")["upsertBucket"]
    assert begun["inserted"] is True
    assert begun["bucket"]["project"]["entity"]["name"] == "team"
    files = call("CreateRunFiles", entity="team", project="project", run="agent", files=["output.log"])
    assert files["createRunFiles"]["files"] == []


def test_what_is_not_served_is_refused_by_name(call):
    [message] = call("mutation DeleteModel { deleteModel(id: 1) { success } }", fails=True)
    assert "DeleteModel" in message and "deleteModel" in message and "docs/clients.md" in message
    [message] = call("query Q { viewer { salary } }", fails=True)
    assert "salary" in message
    [message] = call("hello", fails=True)
    assert "isn't GraphQL" in message
    assert call("query Q {" + "viewer { id } " * 2000 + "}", fails=True)


def test_bodies_that_are_no_operation_are_refused(http):
    for body in ({}, {"query": 1}, {"query": "query Q { viewer { id } }", "variables": [1]}):
        assert http.post("/graphql", json=body).status_code == 422
    assert http.post("/graphql", content=b"{").status_code == 422


def test_a_key_is_also_taken_as_the_password_of_the_user_api(http, key, call):
    http.headers.pop("Authorization")
    basic = lambda user, secret: {"Authorization": "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()}  # noqa: E731
    assert call("GetDefaultEntity", headers=basic("api", key))["viewer"]["entity"] == "team"
    for wrong in (basic("api", key + "x"), basic("somebody", key), {"Authorization": "Basic ?"}):
        assert http.post("/graphql", json={"query": "{viewer{id}}"}, headers=wrong).status_code == 401


def test_other_entities_see_nothing(http, call, begin, store):
    id, _, _ = begin({"train.jsonl": ROWS})
    stranger = {"Authorization": f"Bearer {create_key(store, 'k', 'others')}"}
    assert "no artifact" in call("ArtifactByID", fails=True, headers=stranger, id=id)[0]
    assert (
        "belongs to entity others"
        in call("ArtifactType", fails=True, headers=stranger, entity="team", project="project", name=NAME)[0]
    )
    assert call("ArtifactType", headers=stranger, entity="others", project="project", name=NAME)["project"] == {
        "artifact": None
    }
    path = "/files/team/project/run/file_stream"
    assert http.post(path, json={}, headers=stranger).status_code == 404
    assert http.post(path, json={}).json() == {"exitcode": None, "limits": {}}


def test_bytes_with_another_md5_are_refused(http, begin):
    _, urls, (manifest_url, manifest) = begin({"train.jsonl": ROWS})
    refused = http.put(urls["train.jsonl"], content=ROWS + b" ")
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "md5_mismatch")
    assert http.put(manifest_url, content=manifest + b" ").json()["error"]["code"] == "md5_mismatch"


def test_a_large_file_is_refused(http, begin, configure, blobs):
    configure("limits", max_dataset_bytes=10)
    _, urls, _ = begin({"train.jsonl": ROWS})
    assert http.put(urls["train.jsonl"], content=ROWS).status_code == 413
    assert blobs() == []


def test_urls_are_bound_to_what_they_were_made_for(http, begin, clock):
    _, urls, (manifest_url, _) = begin({"train.jsonl": ROWS})
    url = urls["train.jsonl"]
    http.headers.pop("Authorization")
    changed = url[:-2] + ("AA" if url[-2:] != "AA" else "BB")
    read = url.replace("/uploads/", "/downloads/")
    for wrong in (changed, url.rpartition(".")[0] + "." + manifest_url.rpartition(".")[2], url + "x"):
        assert http.put(wrong, content=ROWS).status_code == 403, wrong
    assert http.get(read).status_code == 403
    assert http.put("/wandb/uploads/x", content=ROWS).json()["error"]["code"] == "url_invalid"
    clock.advance(3601)
    assert http.put(url, content=ROWS).json()["error"]["code"] == "url_expired"


def test_an_upload_sent_twice_is_stored_once(http, begin, blobs):
    _, urls, _ = begin({"train.jsonl": ROWS})
    for _ in range(2):
        assert http.put(urls["train.jsonl"], content=ROWS).status_code == 200
    assert len(blobs()) == 1


def test_an_incomplete_artifact_is_not_committed(http, call, begin):
    id, urls, (manifest_url, manifest) = begin({"train.jsonl": ROWS})
    assert "no manifest" in call("CommitArtifact", fails=True, artifactID=id)[0]
    assert http.put(manifest_url, content=manifest).status_code == 200
    assert "lacks train.jsonl" in call("CommitArtifact", fails=True, artifactID=id)[0]
    http.put(urls["train.jsonl"], content=ROWS)
    assert call("CommitArtifact", artifactID=id)["commitArtifact"]["artifact"]["id"] == id
    assert call("CommitArtifact", artifactID=id)["commitArtifact"]["artifact"]["id"] == id
    again = call("CreateArtifactFiles", fails=True, input={"artifactFiles": [
        {"artifactID": id, "name": "metadata.json", "md5": md5_of(b"{}")}]})  # fmt: skip
    assert "complete" in again[0]


def test_a_digest_that_is_not_that_of_the_files_is_refused(http, call, begin):
    id, urls, (manifest_url, manifest) = begin({"train.jsonl": ROWS}, digest="0" * 32)
    http.put(urls["train.jsonl"], content=ROWS)
    http.put(manifest_url, content=manifest)
    assert "doesn't describe its files" in call("CommitArtifact", fails=True, artifactID=id)[0]


def new(**changes):
    return {"entityName": "team", "projectName": "project", "artifactTypeName": "dataset", "digest": "0" * 32,
            "artifactCollectionName": NAME, **changes}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"artifactTypeName": "job"}, "artifactTypeName"),
        ({"artifactCollectionName": "../x"}, "artifactCollectionName"),
        ({"projectName": "a/b"}, "projectName"),
        ({"digestAlgorithm": "MANIFEST_XXH128"}, "digestAlgorithm"),
        ({"description": "mine"}, "description"),
        ({"distributedID": "d"}, "distributedID"),
        ({"ttlDurationSeconds": 5}, "ttlDurationSeconds"),
        ({"metadata": "[1]"}, "metadata"),
        ({"metadata": '{"a": NaN}'}, "metadata"),
        ({"entityName": "others"}, "belongs to entity team"),
        ({"artifactTypeName": "lora", "artifactCollectionName": "unknown"}, "no model team/project/unknown"),
    ],
)
def test_artifacts_that_cannot_be_are_refused_with_the_field(call, changes, place):
    assert place in call("CreateArtifact", fails=True, input=new(**changes))[0]


def test_files_that_an_artifact_cannot_have_are_refused(call):
    id = call("CreateArtifact", input=new())["createArtifact"]["artifact"]["id"]
    declare = lambda **file: call(  # noqa: E731
        "CreateArtifactFiles", fails=True, input={"artifactFiles": [{"artifactID": id, "md5": md5_of(b""), **file}]}
    )[0]
    assert "not 'model.bin'" in declare(name="model.bin")
    assert "MD5" in declare(name="train.jsonl", md5="x")
    assert "in parts" in declare(name="train.jsonl", uploadPartsInput=[{"partNumber": 1, "hexMD5": "0"}])


def test_unfinished_uploads_are_swept(http, begin, services, clock, store, blobs):
    from tandem.serve.jobs.sweeping import sweep

    _, urls, _ = begin({"train.jsonl": ROWS})
    http.put(urls["train.jsonl"], content=ROWS)
    sweep(store, services.artifacts, clock.now.replace(year=2020))
    assert len(blobs()) == 1
    sweep(store, services.artifacts, clock.now.replace(year=2999))
    assert blobs() == []


def test_names_of_the_schema_become_those_of_python():
    names = {"artifactID": "artifact_id", "clientIDMapping": "client_id_mapping", "currentManifest": "current_manifest"}
    assert {name: snake(name) for name in names} == names


@pytest.fixture
def uploaded(http, call, begin):
    def uploaded(rows, **more):
        """Upload and commit rows. Return the messages of the errors."""
        id, urls, (manifest_url, manifest) = begin({"train.jsonl": rows}, **more)
        assert http.put(urls["train.jsonl"], content=rows).status_code == 200
        assert http.put(manifest_url, content=manifest).status_code == 200
        answer = http.post("/graphql", json={"query": OPERATIONS["CommitArtifact"], "variables": {"artifactID": id}})
        return [error["message"] for error in answer.json().get("errors", [])]

    return uploaded


def test_a_job_trains_on_uploaded_rows_by_the_name_of_their_artifact(http, model, uploaded, store, blobs):
    assert uploaded(ROWS * 2) == []
    [dataset] = http.get("/v1/preview/datasets").json()["data"]
    assert (dataset["digest"], dataset["rows"]) == (hashlib.sha256(ROWS * 2).hexdigest(), 2)
    assert len(blobs()) == 1, "the upload is the dataset"

    def post(name):
        body = {"model_id": model["id"], "training_data_url": f"wandb-artifact:///{name}", "config": {"batch_size": 2}}
        return http.post("/v1/preview/sft-training-jobs", json=body)

    accepted = post(f"team/project/{NAME}:v0")
    assert accepted.status_code == 200, accepted.text
    [job] = store.jobs.page("team", 10)
    assert (job.id, job.kind) == (accepted.json()["id"], "sft")
    repeated = post(f"team/project/{NAME}:v0")
    assert (repeated.json(), repeated.headers["x-repeated-job"]) == (accepted.json(), "true")
    for unknown in (f"team/project/{NAME}:v1", f"others/project/{NAME}:v0", f"team/elsewhere/{NAME}:v0"):
        assert post(unknown).status_code == 404


def test_rows_that_cannot_train_fail_the_commit_with_their_line(http, uploaded):
    [message] = uploaded(ROWS + b'{"messages": 7}\n')
    assert "messages" in message
    assert http.get("/v1/preview/datasets").json()["data"] == []


def test_versions_of_a_dataset_count_up_and_equal_ones_are_one(http, call, uploaded):
    for rows in (ROWS, ROWS * 2):
        assert uploaded(rows) == []
    again = call("CreateArtifact", input={**new(enableDigestDeduplication=True), "digest": "0" * 32})
    assert again["createArtifact"]["artifact"]["state"] == "PENDING"
    page = call("ProjectArtifacts", entity="team", project="project", type="dataset", collection=NAME, perPage=1)
    versions = page["project"]["artifactType"]["artifactCollection"]["artifacts"]
    assert [edge["version"] for edge in versions["edges"]] == ["v1"]
    assert versions["pageInfo"]["hasNextPage"] is True
    digest = versions["edges"][0]["node"]["digest"]
    twin = call("CreateArtifact", input=new(enableDigestDeduplication=True, digest=digest))
    assert twin["createArtifact"]["artifact"]["state"] == "COMMITTED"


def test_artifacts_whose_dataset_was_deleted_are_swept(http, call, uploaded, store, services, clock):
    from tandem.serve.jobs.sweeping import sweep

    uploaded(ROWS)
    [dataset] = http.get("/v1/preview/datasets").json()["data"]
    sweep(store, services.artifacts, clock.now.replace(year=2999))
    assert store.wandb.find("team", "project", NAME)
    assert http.delete(f"/v1/preview/datasets/{dataset['id']}").status_code == 200
    sweep(store, services.artifacts, clock.now.replace(year=2999))
    assert store.wandb.find("team", "project", NAME) is None
