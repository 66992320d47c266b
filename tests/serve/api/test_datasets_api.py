"""Datasets over HTTP: stored once by content, validated by line, limited, and owned by an entity."""

import gzip
import hashlib
import json
import uuid
from dataclasses import replace

import pytest
import zstandard

from tandem.cluster.payloads.rows import MAX_LINE_BYTES
from tandem.serve.keys import create_key

DATASETS = "/v1/preview/datasets"
ROW = {"messages": [{"role": "user", "content": "1 + 6 = ?"}, {"role": "assistant", "content": "seven"}]}


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def upload(http):
    def upload(data, **headers):
        return http.post(DATASETS, content=data, headers={"content-type": "application/jsonl", **headers})

    return upload


def test_a_dataset_is_stored_once_by_its_content(http, upload, services, blobs):
    data = (
        b"\xef\xbb\xbf"
        + lines(ROW)
        + b"\r\n  \n"
        + lines({**ROW, "response_format": {"type": "text"}, "id": 4}).strip()
    )
    answer = upload(data)
    assert answer.status_code == 200, answer.text
    digest, dataset = hashlib.sha256(data).hexdigest(), answer.json()
    assert dataset["url"] == f"tandem-dataset:///{digest}"
    assert (dataset["digest"], dataset["rows"], dataset["bytes"]) == (digest, 2, len(data))
    assert dataset["ignored_fields"] == {"response_format": 1, "id": 1}
    assert upload(gzip.compress(data), **{"content-encoding": "gzip"}).json() == dataset
    assert blobs() == [f"datasets/{dataset['id']}.jsonl.zst"]
    stored = services.artifacts.read_blob(blobs()[0])
    assert zstandard.ZstdDecompressor().decompressobj().decompress(stored) == data
    assert http.get(f"{DATASETS}/{dataset['id']}").json() == dataset
    other = upload(lines(ROW)).json()
    assert [found["id"] for found in http.get(DATASETS).json()["data"]] == [other["id"], dataset["id"]]
    page = http.get(DATASETS, params={"order": "asc", "limit": 1}).json()
    assert ([found["id"] for found in page["data"]], page["has_more"]) == ([dataset["id"]], True)
    assert http.delete(f"{DATASETS}/{dataset['id']}").json() == {"id": dataset["id"], "deleted": True}
    assert blobs() == [f"datasets/{other['id']}.jsonl.zst"]
    assert http.get(f"{DATASETS}/{dataset['id']}").status_code == 404


@pytest.mark.parametrize(
    ("data", "loc"),
    [
        (lines(ROW, {"messages": [{"role": "robot", "content": "x"}]}), ["line", 2, "messages", 0, "role"]),
        (lines(ROW, ROW, {"prompt": "x"}), ["line", 3, "messages"]),
        (lines(ROW) + b"\n{" + lines(ROW), ["line", 3]),
        (lines(ROW, {**ROW, "tools": [{"type": "function"}]}), ["line", 2, "tools", 0, "function"]),
        (lines({"messages": []}), ["line", 1, "messages"]),
        (lines({"messages": [{"role": "user"}]}), ["line", 1, "messages", 0, "content"]),
        (lines(ROW) + b'{"messages": [{"role": "user", "content": "\xff"}]}', ["line", 2]),
        (b'{"messages": [{"role": "user", "content": "x", "name": NaN}]}', ["line", 1, "messages", 0, "name"]),
        (b"[1]", ["line", 1]),
        (b"\n\n", []),
        (b"", []),
    ],
)
def test_a_fault_is_refused_with_line_and_field(upload, blobs, data, loc):
    answer = upload(data)
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"][0]["loc"] == ["body", *loc]
    assert blobs() == []


def test_every_fault_is_named(upload):
    answer = upload(lines({"messages": 1}, ROW, {"messages": [{"role": "user", "content": 1}, {"content": "x"}]}))
    assert [fault["loc"][1:3] for fault in answer.json()["detail"]] == [["line", 1], ["line", 3], ["line", 3]]


def test_a_dataset_has_a_limit(upload, services, app, blobs):
    limits = services.config.limits.model_copy(update={"max_dataset_bytes": 1000})
    app.state.services = replace(services, config=services.config.model_copy(update={"limits": limits}))
    padding = b" " * 990 + b"\n"
    assert upload(lines(ROW)).status_code == 200
    assert upload(lines(ROW) + padding).status_code == 413
    assert upload(gzip.compress(lines(ROW) + padding), **{"content-encoding": "gzip"}).status_code == 413
    assert len(blobs()) == 1


def test_a_row_has_a_limit(upload):
    answer = upload(lines(ROW) + b'{"messages": "' + b"x" * MAX_LINE_BYTES + b'"}')
    assert answer.json()["detail"][0]["loc"] == ["body", "line", 2]


def test_other_entities_and_roles_have_no_part_of_it(http, upload, store):
    dataset = upload(lines(ROW)).json()
    http.headers["Authorization"] = f"Bearer {create_key(store, 'k', 'others', 'train')}"
    assert http.get(DATASETS).json()["data"] == []
    assert http.get(f"{DATASETS}/{dataset['id']}").status_code == 404
    assert http.delete(f"{DATASETS}/{dataset['id']}").status_code == 404
    assert upload(lines(ROW)).json()["id"] != dataset["id"]
    http.headers["Authorization"] = f"Bearer {create_key(store, 'k', 'team', 'infer')}"
    assert upload(lines(ROW)).status_code == 403
    assert uuid.UUID(dataset["id"])
