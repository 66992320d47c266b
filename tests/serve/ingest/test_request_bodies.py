"""Receiving bodies: limits while reading, compressed bodies, clients that stall or disconnect."""

import gzip
import json
import zlib

import pytest
import zstandard
from serve_fakes import groups
from waiting import wait_until

JOBS, MODELS = "/v1/preview/training-jobs", "/v1/preview/models"
CREATE = {"project": "project", "name": "other", "base_model": "tandem/tiny"}


def job(model, **changes):
    return json.dumps({"model_id": model["id"], "trajectory_groups": groups(), **changes}).encode()


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd", "identity"])
def test_packed_bodies_are_taken_on_all_routes(http, model, coding, engine):
    pack = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstandard.compress, "identity": bytes}[coding]
    headers = {"Content-Encoding": coding}
    engine.answers({"choices": []})
    log = json.dumps({"model_id": model["id"], "split": "val", "trajectory_groups": groups()}).encode()
    chat = json.dumps({"model": "tandem/tiny", "messages": []}).encode()
    for path, body in (
        (MODELS, json.dumps(CREATE).encode()),
        (JOBS, job(model)),
        (f"{MODELS}/{model['id']}/log", log),
        ("/v1/chat/completions", chat),
    ):
        response = http.post(path, content=pack(body), headers=headers)
        assert response.status_code == 200, (path, response.text)


def test_a_packed_repeat_is_the_same_body(http, model):
    first = http.post(JOBS, content=job(model), headers={"Idempotency-Key": "k"})
    headers = {"Idempotency-Key": "k", "Content-Encoding": "gzip"}
    assert http.post(JOBS, content=gzip.compress(job(model)), headers=headers).json() == first.json()


@pytest.mark.parametrize("path", [MODELS, JOBS])
@pytest.mark.parametrize(
    ("coding", "body", "status", "words"),
    [
        ("br", b"x", 415, "gzip, zstd, deflate"),
        ("gzip", b"not packed", 422, "isn't valid gzip"),
        ("gzip", gzip.compress(b'{"project": "p"}', mtime=0)[:-4], 422, "ends too early"),
        ("zstd", zstandard.compress(b"{" * 100)[:-4], 422, "ends too early"),
    ],
)
def test_a_body_that_cannot_be_unpacked_is_refused(http, model, blobs, path, coding, body, status, words):
    response = http.post(path, content=body, headers={"Content-Encoding": coding})
    assert response.status_code == status
    assert words in response.json()["error"]["message"]
    assert blobs() == []


@pytest.mark.parametrize(
    ("path", "setting"), [(MODELS, "max_request_bytes"), ("/v1/chat/completions", "max_request_bytes")]
)
def test_a_body_may_be_as_large_as_the_limit(http, configure, path, setting):
    body = json.dumps({**CREATE, "note": "x" * 500}).encode()
    configure("limits", **{setting: len(body)})
    assert http.post(path, content=body).status_code == 422
    configure("limits", **{setting: len(body) - 1})
    response = http.post(path, content=body)
    assert response.status_code == 413
    assert f"limits.{setting}" in response.json()["error"]["message"]
    assert str(len(body) - 1) in response.json()["error"]["message"]


def test_payloads_have_a_limit_of_their_own(http, model, configure, blobs):
    body = job(model)
    configure("limits", max_request_bytes=10, max_payload_bytes=len(body))
    assert http.post(JOBS, content=body).status_code == 200
    configure("limits", max_payload_bytes=len(body) - 1)
    for path in (JOBS, f"{MODELS}/{model['id']}/log"):
        response = http.post(path, content=body)
        assert response.status_code == 413
        assert "limits.max_payload_bytes" in response.json()["error"]["message"]
    assert len(blobs()) == 1


@pytest.mark.parametrize("path", [MODELS, JOBS])
def test_a_bomb_stops_at_the_limit(http, model, configure, blobs, path):
    configure("limits", max_request_bytes=1 << 20, max_payload_bytes=1 << 20)
    for coding, pack in (("gzip", gzip.compress), ("zstd", zstandard.compress)):
        bomb = pack(b'{"trajectory_groups": [' + b" " * (1 << 28))
        assert len(bomb) < 1 << 20
        assert http.post(path, content=bomb, headers={"Content-Encoding": coding}).status_code == 413
    assert blobs() == []


def test_a_declared_length_beyond_the_limit_is_refused_before_anything_is_sent(connect, answer):
    for path in (MODELS, JOBS):
        status, body = answer(connect(path, f"Content-Length: {10**12}"))
        assert (status, body["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("path", [MODELS, JOBS])
def test_an_endless_body_is_refused_at_the_limit(connect, answer, configure, blobs, path):
    configure("limits", max_request_bytes=1 << 20, max_payload_bytes=1 << 20)
    connection = connect(path, "Transfer-Encoding: chunked")
    part = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    for _ in range(20):  # parts of 64 KiB; the last chunk is never sent
        connection.sendall(part)
    assert answer(connection)[0] == 413
    assert blobs() == []


def test_a_body_that_is_not_trajectory_groups_is_not_kept_in_memory(http, configure, blobs):
    for body in (b'{"model_id": "' + b"x" * (2 << 20), b"[" * (2 << 20), b'{"a": [], ' * (200 << 10)):
        response = http.post(JOBS, content=body)
        assert response.status_code == 413
        assert "outside of its trajectory groups" in response.json()["error"]["message"]
    assert blobs() == []


@pytest.mark.parametrize("path", [MODELS, JOBS])
def test_a_client_that_stalls_is_let_go(connect, answer, configure, blobs, path):
    configure("deadlines", receive_s=0.3)
    connection = connect(path, "Content-Length: 100")
    connection.sendall(b'{"model_id":')
    status, body = answer(connection)
    assert (status, body["error"]["code"]) == (408, "request_stalled")
    assert "deadlines.receive_s" in body["error"]["message"]
    assert blobs() == []


def test_a_client_that_hangs_up_while_sending_leaves_nothing(connect, blobs, http):
    connection = connect(JOBS, "Content-Length: 1000000")
    connection.sendall(b'{"model_id":' + b" " * 300_000)
    wait_until(lambda: len(blobs()) == 1)  # the spooled file
    connection.close()
    wait_until(lambda: blobs() == [])
    assert http.get(JOBS).json()["data"] == []


def test_a_client_that_hangs_up_while_its_job_is_checked_leaves_nothing(connect, hang_up, model, services, blobs, http):
    check, body = services.preparation.check, job(model)
    started, gone = [], []

    def check_slowly(*arguments, **options):
        started.append(blobs())
        wait_until(lambda: gone)
        check(*arguments, **options)

    services.preparation.check = check_slowly
    connection = connect(JOBS, f"Content-Length: {len(body)}")
    connection.sendall(body)
    wait_until(lambda: started)
    assert [key.split("/")[0] for key in started[0]] == ["payloads"]
    hang_up(connection)
    gone.append(True)
    wait_until(lambda: blobs() == [])
    assert http.get(JOBS).json()["data"] == []
