"""Each job is accepted once, and only up to the limits."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from tandem.cluster.config import LimitsConfig
from tandem.serve.errors import ConflictError, QueueFullError
from tandem.serve.store.store import Store

pytestmark = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def post(store):
    def post(model, key=None, body="0" * 64, through=store, sender=None, **limits):
        job_id = str(uuid.uuid4())
        payload = f"payloads/{job_id}"
        limits = LimitsConfig(**limits)
        return through.jobs.add(job_id, model.id, payload, {}, body, key, limits=limits, api_key_id=sender)

    return post


@pytest.fixture
def at_once(store_url):
    """Call a function in eight threads at once, each with its own store, as eight processes would."""
    stores, start = [Store(store_url) for _ in range(8)], Barrier(8)

    def call(function):
        def wait_and_call(store):
            start.wait(timeout=300)
            try:
                return function(store)
            except (ConflictError, QueueFullError) as error:
                return error

        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(wait_and_call, stores))

    yield call
    for store in stores:
        store.close()


def test_concurrent_repeats_of_an_idempotency_key_make_one_job(store, add_model, post, at_once):
    model = add_model()
    for key in ("first", "second", "third"):
        jobs = at_once(lambda own, key=key: post(model, key, through=own))
        assert len({job.id for job in jobs}) == 1
    assert len(store.jobs.page("team", 10)) == 3


def test_of_concurrent_bodies_under_one_idempotency_key_one_wins(store, add_model, post, at_once):
    model, bodies = add_model(), iter([str(i) * 64 for i in range(8)])
    outcomes = at_once(lambda own: post(model, "key", next(bodies), through=own))
    refused = [outcome for outcome in outcomes if isinstance(outcome, ConflictError)]
    [job] = store.jobs.page("team", 10)
    assert len(refused) == 7
    assert all(job.id in str(error) for error in refused)


def test_concurrent_jobs_do_not_exceed_the_limits(store, add_model, post, at_once):
    models = [add_model("a"), add_model("b")]
    turns = iter(models * 4)
    outcomes = at_once(lambda own: post(next(turns), through=own, max_open_jobs_per_project=5))
    assert sum(isinstance(outcome, QueueFullError) for outcome in outcomes) == 3
    others = [store.models.add("team", f"project-{number}", "agent", "tandem/tiny", False) for number in range(8)]
    turns = iter(others)
    outcomes = at_once(lambda own: post(next(turns), through=own, max_open_jobs=7))
    assert sum(isinstance(outcome, QueueFullError) for outcome in outcomes) == 6
    assert len(store.jobs.page("team", 20)) == 7


def test_projects_are_limited_apart(store, add_model, post):
    model = add_model()
    elsewhere = store.models.add("team", "another-project", "agent", "tandem/tiny", False)
    namesake = add_model(entity="others")
    post(model, max_open_jobs_per_project=1)
    with pytest.raises(QueueFullError, match="team/project"):
        post(model, max_open_jobs_per_project=1)
    post(elsewhere, max_open_jobs_per_project=1)
    post(namesake, max_open_jobs_per_project=1)
    with pytest.raises(QueueFullError, match="limit is 3"):
        post(namesake, max_open_jobs=3)


def test_jobs_that_ended_make_room(store, add_model, post, claim):
    model = add_model()
    post(model, max_open_jobs=1)
    store.claims.fail(claim(), "no")
    post(model, max_open_jobs=1)


def test_a_repeat_is_answered_though_the_queue_is_full(add_model, post):
    model = add_model()
    job = post(model, "key", max_open_jobs=1)
    assert post(model, "key", max_open_jobs=1).id == job.id


def test_concurrent_posts_of_one_body_make_one_job(store, add_model, post, at_once):
    model = add_model()
    for body in "ab":
        jobs = at_once(lambda own, body=body: post(model, None, body * 64, own, "key of a sender"))
        assert len({job.id for job in jobs}) == 1
    jobs = at_once(lambda own: post(model, None, "a" * 64, own))
    assert len({job.id for job in jobs}) == 8, "jobs of the service itself have no sender"
