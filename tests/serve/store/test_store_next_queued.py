"""The next queued job, which is prepared before its claim."""

import pytest

from tandem.cluster.jobs.job import PolicyVersion

pytestmark = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def foreseen(store):
    """Return the id of the next job."""

    def foreseen(base_model="tandem/tiny"):
        job = store.claims.next_queued(base_model)
        return job and job.id

    return foreseen


def test_it_carries_what_its_batch_follows_from(store, add_model, add_job):
    job = add_job(add_model(), config={"learning_rate": 1e-3})
    queued = store.claims.next_queued("tandem/tiny")
    assert (queued.id, queued.payload_key, queued.config.learning_rate) == (job.id, job.payload_key, 1e-3)


def test_it_is_the_one_claimed_next_also_behind_a_running_one(store, clock, add_model, add_job, claim, foreseen):
    first, second = add_model("first"), add_model("second")
    for model in (first, first, second, first, second):
        add_job(model)
    order = []
    while (expected := foreseen()) is not None:
        clock.advance(1)
        claimed = claim()
        order.append((claimed.id, expected))
        if (behind := foreseen()) is not None:
            store.claims.complete(claimed, PolicyVersion(claimed.model_id, claimed.next_step, "d"), {})
            assert foreseen() == behind
    assert len(order) == 5 and all(claimed == expected for claimed, expected in order)


def test_cancelled_running_and_foreign_jobs_are_not(store, add_model, add_job, claim, foreseen):
    assert foreseen() is None
    model = add_model()
    add_job(add_model("other", base_model="another/base"))
    add_job(model)
    claim()
    assert foreseen() is None
    cancelled, last = add_job(model), add_job(model)
    store.jobs.request_cancel(cancelled.id, "team")
    assert foreseen() == last.id
    assert foreseen("another/base") is not None
