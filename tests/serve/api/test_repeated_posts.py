"""A client that lost an answer and sends no idempotency key gets its job with the same body again."""

import gzip
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from serve_fakes import groups

from tandem.cluster.jobs.job import PolicyVersion
from tandem.serve.keys import create_key

JOBS = "/v1/preview/training-jobs"


@pytest.fixture
def post(http, model):
    """Post a job. Return its id, and whether the answer is marked as a repeat."""

    def post(headers=None, num_groups=1, model_id=None):
        body = {"model_id": model_id or model["id"], "trajectory_groups": groups(num_groups)}
        response = http.post(JOBS, json=body, headers=headers)
        assert response.status_code == 200, response.text
        return response.json()["id"], response.headers.get("x-repeated-job") == "true"

    return post


def test_the_same_body_is_answered_with_the_job_while_it_is_open(post, http, blobs, claim, clock):
    job, is_repeat = post()
    assert not is_repeat
    clock.advance(59)
    assert post() == (job, True)
    assert claim().id == job
    assert post() == (job, True)
    assert len(http.get(JOBS).json()["data"]) == len(blobs()) == 1


def test_the_coding_of_the_body_makes_no_difference(post, http, model):
    job, _ = post()
    body = json.dumps({"model_id": model["id"], "trajectory_groups": groups()}, separators=(",", ":")).encode()
    answer = http.post(JOBS, content=gzip.compress(body), headers={"Content-Encoding": "gzip"})
    assert answer.json()["id"] == job


def test_another_sender_body_or_model_makes_another_job(post, http, store):
    first = post()[0]
    other_key = {"Authorization": f"Bearer {create_key(store, 'of a colleague', 'team')}"}
    other_model = {"project": "project", "name": "other", "base_model": "tandem/tiny"}
    others = [
        post(other_key),
        post(num_groups=2),
        post(model_id=http.post("/v1/preview/models", json=other_model).json()["id"]),
    ]
    assert not any(is_repeat for _, is_repeat in others)
    assert len({first, *(job for job, _ in others)}) == 4
    assert post(other_key) == (others[0][0], True)


def test_a_job_that_ended_is_not_repeated(post, http, store, claim, model):
    post()
    store.claims.fail(claim(), "no")
    second, is_repeat = post()
    assert not is_repeat
    store.claims.complete(claim(), PolicyVersion(model["id"], 1, "d"), {})
    third, is_repeat = post()
    assert not is_repeat
    http.post(f"{JOBS}/{third}/cancel")
    fourth, is_repeat = post()
    assert not is_repeat
    claim()
    assert http.post(f"{JOBS}/{fourth}/cancel").json()["state"] == "running"  # cancellation is only requested
    fifth, is_repeat = post()
    assert not is_repeat
    assert len({second, third, fourth, fifth}) == 4


def test_a_minute_later_the_same_body_makes_another_job(post, clock):
    first, _ = post()
    clock.advance(61)
    second, is_repeat = post()
    assert (second != first, is_repeat) == (True, False)
    assert post() == (second, True)


def test_the_time_can_be_changed_or_be_nothing(post, configure, clock):
    configure("limits", repeated_body_s=10)
    first, _ = post()
    clock.advance(9)
    assert post() == (first, True)
    configure("limits", repeated_body_s=0)
    assert not post()[1]


def test_an_idempotency_key_follows_its_own_rules_alone(post):
    without, _ = post()
    with_key, is_repeat = post({"Idempotency-Key": "k"})
    assert (with_key != without, is_repeat) == (True, False)
    assert post({"Idempotency-Key": "other"})[0] not in (without, with_key)
    assert post({"Idempotency-Key": "k"}) == (with_key, True)
    assert post() == (without, True)


def test_a_job_with_an_idempotency_key_is_no_answer_to_a_post_without(post):
    with_key, _ = post({"Idempotency-Key": "k"})
    without, is_repeat = post()
    assert (without != with_key, is_repeat) == (True, False)


@pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)
def test_the_same_body_many_times_at_once_makes_one_job(post, http, blobs):
    barrier = threading.Barrier(6)

    def send(_):
        barrier.wait()
        return post()

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(send, range(6)))
    assert len({job for job, _ in answers}) == 1
    assert [is_repeat for _, is_repeat in answers].count(False) == 1
    assert len(http.get(JOBS).json()["data"]) == len(blobs()) == 1


def test_a_repeat_is_answered_though_the_queue_is_full(post, http, store, model, configure):
    configure("limits", max_open_jobs=1)
    job, _ = post()
    assert post() == (job, True)
    body = {"model_id": model["id"], "trajectory_groups": groups(2)}
    assert http.post(JOBS, json=body).status_code == 429
    other_key = {"Authorization": f"Bearer {create_key(store, 'of a colleague', 'team')}"}
    body = {"model_id": model["id"], "trajectory_groups": groups()}
    assert http.post(JOBS, json=body, headers=other_key).status_code == 429
