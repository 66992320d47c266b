"""A full queue and a full disk: rejected requests leave nothing behind, and other requests still work."""

import os
import resource
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from serve_fakes import groups

JOBS, MODELS = "/v1/preview/training-jobs", "/v1/preview/models"


@pytest.fixture
def post(http, model):
    def post(model_id=model["id"], headers=None, **changes):
        """Post a job. Without an idempotency key, each body is another one, so that none repeats an earlier post."""
        [group], logs = groups(), [] if headers else [uuid.uuid4().hex]
        body = {"model_id": model_id, "trajectory_groups": [{**group, "logs": logs}], **changes}
        return http.post(JOBS, json=body, headers=headers)

    return post


@pytest.fixture
def log(http, model):
    body = {"model_id": model["id"], "split": "val", "trajectory_groups": groups()}
    return lambda: http.post(f"{MODELS}/{model['id']}/log", json=body)


@pytest.fixture
def other_project(http):
    body = {"project": "elsewhere", "name": "agent", "base_model": "tandem/tiny"}
    return http.post(MODELS, json=body).json()["id"]


@pytest.fixture
def checked(services):
    """A list of the payloads that were checked."""
    keys, check = [], services.preparation.check

    def record(base_model, key, *rest, **options):
        keys.append(key)
        check(base_model, key, *rest, **options)

    services.preparation.check = record
    return keys


def assert_queue_full(response, whose):
    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) > 0
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
    assert whose in error["message"]


def test_a_full_project_takes_no_more_jobs_and_others_do(post, configure, other_project, blobs, checked, claim, store):
    configure("limits", max_open_jobs_per_project=2)
    first, second = post(headers={"Idempotency-Key": "k"}).json(), post().json()
    assert first != second
    del checked[:]
    assert_queue_full(post(), "2 training jobs of project team/project ")
    assert checked == []  # rejected before the payload is checked
    assert post(headers={"Idempotency-Key": "k"}).json() == first
    assert post(other_project).status_code == 200
    assert len(blobs()) == 3
    store.claims.fail(claim(), "to make room")
    assert post().status_code == 200


def test_a_full_service_refuses_before_the_body_is_sent(connect, answer, post, configure, blobs):
    configure("limits", max_open_jobs=1)
    first = post(headers={"Idempotency-Key": "k"}).json()
    status, body = answer(connect(JOBS, "Content-Length: 1000000"))
    assert (status, body["error"]["code"]) == (429, "queue_full")
    assert_queue_full(post(headers={"Idempotency-Key": "another"}), "1 training jobs are queued or running")
    assert post(headers={"Idempotency-Key": "k"}).json() == first
    assert post(headers={"Idempotency-Key": "k"}, experimental_config={}).status_code == 409
    assert len(blobs()) == 1


def test_a_full_queue_stops_nothing_else(http, post, log, configure, model, engine):
    configure("limits", max_open_jobs=1)
    job = post().json()["id"]
    assert post().status_code == 429
    engine.answers({"choices": []})
    assert http.post("/v1/chat/completions", json={"model": "tandem/tiny", "messages": []}).status_code == 200
    assert log().status_code == 200
    assert http.get(f"{JOBS}/{job}/events").status_code == 200
    assert http.post(f"{JOBS}/{job}/cancel").json()["state"] == "cancelled"
    assert post().status_code == 200


def test_many_jobs_at_once_do_not_overfill_the_queue(post, configure, blobs):
    configure("limits", max_open_jobs_per_project=3)
    barrier = threading.Barrier(8)

    def send(_):
        barrier.wait()
        return post().status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(send, range(8)))
    assert statuses == [200] * 3 + [429] * 5
    assert len(blobs()) == 3


def test_a_disk_that_is_nearly_full_takes_no_payloads_and_serves_the_rest(http, post, log, configure, engine, blobs):
    job = post().json()["id"]
    configure("limits", min_free_disk_bytes=1 << 60)
    for response in (post(), log()):
        assert response.status_code == 507
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("insufficient_storage_error", "disk_full")
        assert "limits.min_free_disk_bytes" in error["message"]
    engine.answers({"choices": []})
    assert http.post("/v1/chat/completions", json={"model": "tandem/tiny", "messages": []}).status_code == 200
    assert http.get(f"{JOBS}/{job}/events").status_code == 200
    health = http.get("/health").json()
    assert health["status"] == "degraded"
    assert "limits.min_free_disk_bytes" in health["reasons"][0]
    assert len(blobs()) == 1
    configure("limits", min_free_disk_bytes=0)
    assert post().status_code == 200
    assert http.get("/health").json()["status"] == "ok"


@pytest.fixture
def full_disk():
    """In this block, writing a file beyond 1 MiB fails, as on a full disk. The store has less."""

    @contextmanager
    def full_disk():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return full_disk


def test_a_disk_that_fills_up_while_a_job_arrives_keeps_nothing_of_it(http, post, blobs, full_disk):
    sent = [{**groups()[0], "logs": [os.urandom(4 << 20).hex()]}]
    with full_disk():
        response = post(trajectory_groups=sent)
        small = post()
    assert response.status_code == 507
    error = response.json()["error"]
    assert (error["code"], "Nothing was accepted" in error["message"]) == ("disk_full", True)
    assert small.status_code == 200
    assert len(blobs()) == len(http.get(JOBS).json()["data"]) == 1
