"""Files, with the unmodified SDK of OpenAI."""

import json

import httpx
import openai
import pytest

from tandem.serve.finetuning.files import remove_leftovers, remove_unused
from tandem.serve.finetuning.store.store import FineTuningStore
from tandem.serve.keys import create_key

ROWS = [{"messages": [{"role": "user", "content": "é\u2028"}]}, {"messages": []}]
CONTENT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def test_a_file_is_kept_as_it_was_sent(client, tmp_path):
    path = tmp_path / "rows of train.jsonl"
    path.write_bytes(CONTENT)
    with path.open("rb") as file:
        created = client.files.create(file=file, purpose="fine-tune")
    assert (created.object, created.bytes, created.filename) == ("file", len(CONTENT), path.name)
    assert (created.purpose, created.status, created.expires_at) == ("fine-tune", "processed", None)
    assert client.files.retrieve(created.id) == created
    assert client.files.content(created.id).read() == CONTENT
    assert [file.id for file in client.files.list()] == [created.id]
    assert client.files.list(purpose="batch").data == []


def test_a_large_file_is_streamed(client):
    row = json.dumps({"messages": [{"role": "user", "content": "x" * 5000}]}).encode() + b"\n"
    content = row * 400  # more than one batch of packets
    created = client.files.create(file=("big.jsonl", content), purpose="fine-tune")
    assert client.files.content(created.id).read() == content


def test_lists_are_paged(client, upload):
    ids = [upload(CONTENT).id for _ in range(5)]
    assert [file.id for file in client.files.list(limit=2)] == ids[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == ids
    page = client.files.list(limit=2, after=ids[3])
    assert [file.id for file in page.data] == [ids[2], ids[1]] and page.has_more
    with pytest.raises(openai.UnprocessableEntityError):
        client.files.list(after="file-unknown")


def test_a_deleted_file_is_gone_from_the_disk(client, upload, blobs):
    created = upload(CONTENT)
    assert blobs() == [f"files/{created.id}.jsonl"]
    deleted = client.files.delete(created.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (created.id, True, "file")
    assert blobs() == []
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as error:
            call(created.id)
        assert (error.value.code, error.value.param) == ("file_not_found", "file_id")


def test_an_expired_file_is_gone(client, clock, services, blobs):
    expiry = {"anchor": "created_at", "seconds": 3600}
    created = client.files.create(file=("a.jsonl", CONTENT), purpose="fine-tune", expires_after=expiry)
    assert created.expires_at == created.created_at + 3600
    clock.advance(3601)
    assert client.files.list().data == []
    assert len(blobs()) == 1
    remove_unused(FineTuningStore(services.store.database), services.artifacts)
    assert blobs() == []


def test_files_of_other_entities_do_not_exist(client, upload, store, base_url):
    created = upload(CONTENT)
    with openai.OpenAI(base_url=base_url, api_key=create_key(store, "k", "others"), max_retries=0) as other:
        assert other.files.list().data == []
        for call in (other.files.retrieve, other.files.content, other.files.delete):
            with pytest.raises(openai.NotFoundError):
                call(created.id)
        with pytest.raises(openai.BadRequestError) as error:
            other.fine_tuning.jobs.create(model="tandem/tiny", training_file=created.id)
        assert error.value.param == "training_file"
        with pytest.raises(openai.UnprocessableEntityError):
            other.files.list(after=created.id)


@pytest.mark.parametrize("purpose", ["batch", "assistants", "vision", "user_data", "evals"])
def test_other_purposes_are_refused_by_name(client, blobs, purpose):
    with pytest.raises(openai.BadRequestError, match="fine-tune") as error:
        client.files.create(file=("a.jsonl", CONTENT), purpose=purpose)
    assert error.value.param == "purpose"
    assert blobs() == [], "nothing of it stays on the disk"


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"", 1), (b"\n \n", 1), (b'{"a": 1}\n[1]\n', 2), (b'{"a": 1}\n\n{"a"\n', 3), (b'{"a": "\xff"}\n', 1)],
)
def test_what_is_not_json_lines_is_refused_with_the_line(client, blobs, content, line):
    with pytest.raises(openai.BadRequestError, match=f"line {line}:") as error:
        client.files.create(file=("a.jsonl", content), purpose="fine-tune")
    assert (error.value.param, error.value.code) == ("file", "invalid_file")
    assert blobs() == []


def test_a_file_above_the_limit_is_refused(client, configure, blobs):
    configure("limits", max_payload_bytes=1000)
    with pytest.raises(openai.APIStatusError, match="max_payload_bytes") as error:
        client.files.create(file=("a.jsonl", CONTENT * 100), purpose="fine-tune")
    assert error.value.status_code == 413
    assert blobs() == []


FORM = "multipart/form-data; boundary=x"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"--x--"),
        (FORM, b""),
        (FORM, b"nonsense"),
        (FORM, b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--x--\r\n'),
        (FORM, b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{}\r\n'),
        (FORM, b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{}\r\n--x--\r\n'),
        (FORM, b"--x\r\nContent-Disposition: form-data\r\n\r\n{}\r\n--x--\r\n"),
    ],
)
def test_what_is_not_such_a_form_is_refused(base_url, key, blobs, content_type, body):
    headers = {"Authorization": f"Bearer {key}", "Content-Type": content_type}
    response = httpx.post(f"{base_url}/files", content=body, headers=headers)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert blobs() == []


def test_an_interrupted_upload_leaves_nothing(connect, hang_up, services, blobs, client):
    connection = connect("/v1/files", f"Content-Type: {FORM}", "Content-Length: 100000")
    connection.sendall(b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{}')
    hang_up(connection)
    assert client.files.list().data == []
    assert [blob for blob in blobs() if not blob.startswith("spool/")] == []


def test_contents_without_a_row_are_swept(services, blobs, upload):
    from datetime import UTC, datetime, timedelta

    kept = upload(CONTENT)
    services.artifacts.write_blob("files/file-lost.jsonl", b"{}")
    store = FineTuningStore(services.store.database)
    remove_leftovers(store, services.artifacts, datetime.now(UTC) - timedelta(hours=1))
    assert len(blobs()) == 2, "an upload may be in progress"
    remove_leftovers(store, services.artifacts, datetime.now(UTC) + timedelta(hours=1))
    assert blobs() == [f"files/{kept.id}.jsonl"]


def test_uploads_in_parts_are_refused_with_a_sentence(client):
    with pytest.raises(openai.BadRequestError, match="POST /v1/files"):
        client.uploads.create(bytes=1, filename="a.jsonl", mime_type="text/jsonl", purpose="fine-tune")
