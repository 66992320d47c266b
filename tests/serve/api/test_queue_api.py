"""The place of a job in the queue, and the reason why it waits."""

import pytest

from tandem.cluster.config import TINY
from tandem.cluster.jobs.job import PolicyVersion
from tandem.serve.keys import create_key

BASE = "tandem/tiny"
AT_ONCE = TINY.learners.jobs_at_once


@pytest.fixture
def queue(http):
    def queue(job, key=None):
        headers = {"Authorization": f"Bearer {key}"} if key else None
        response = http.get(f"/v1/preview/training-jobs/{job.id}/queue", headers=headers)
        assert response.status_code == 200, response.text
        return response.json()

    return queue


@pytest.fixture
def post(add_job):
    """Add a job with a body of its own."""
    number = iter(range(1000))
    return lambda model: add_job(model, body=f"{next(number):064d}")


def test_a_job_that_nothing_keeps_starts_in_a_moment(queue, add_model, post):
    found = queue(post(add_model()))
    assert (found["state"], found["place"], found["cause"], found["waits"]) == ("queued", 1, "starting", True)
    assert found["before"] == {"same_model": [], "own": [], "num_own": 0, "num_others": 0}


def test_it_waits_for_a_job_of_the_same_model(queue, add_model, post, claim, coordinator, store):
    model = add_model()
    first, second, third = post(model), post(model), post(model)
    found = queue(third)
    assert (found["cause"], found["place"]) == ("same_model", 3)
    assert found["before"]["same_model"] == found["before"]["own"] == [first.id, second.id]
    assert first.id in found["reason"] and "queued" in found["reason"]
    claimed = claim()
    coordinator[BASE]["running_jobs"] = [claimed.id]
    found = queue(second)
    assert (found["cause"], found["place"]) == ("same_model", 1) and f"{first.id} of the same model runs" in found[
        "reason"
    ]
    assert found["before"]["same_model"] == [first.id] and found["before"]["own"] == []
    store.claims.complete(claimed, PolicyVersion(model.id, 1, "d"), {})
    assert queue(second)["cause"] == "starting"
    assert queue(first)["cause"] == "ended" and not queue(first)["waits"]


def test_jobs_of_others_are_counted_and_not_named(queue, add_model, post, coordinator, store):
    mine, theirs = add_model(), add_model(entity="others")
    other = [post(theirs) for _ in range(3)]
    own = [post(mine) for _ in range(2)]
    coordinator[BASE]["running_jobs"] = [str(number) for number in range(AT_ONCE)]
    found = queue(own[1])
    # Models take turns, theirs first: theirs, mine, theirs, mine.
    assert (found["place"], found["before"]["num_others"], found["before"]["own"]) == (4, 2, [own[0].id])
    assert (
        not any(job.id in str(found) for job in other)
        and theirs.id not in str(found)
        and "others" not in found["reason"]
    )
    alone = queue(own[0])
    assert (alone["place"], alone["cause"], alone["before"]["num_others"]) == (2, "jobs_at_once", 1)
    assert "jobs_at_once" in alone["reason"]
    found = queue(other[2], create_key(store, "k", "others"))
    assert (found["place"], found["before"]["num_others"], found["before"]["num_own"]) == (5, 2, 2)


def test_the_place_is_the_order_of_claims(queue, add_model, post, claim, clock, store):
    """Each place is checked against the claims that follow."""
    models = [add_model(name) for name in "abc"]
    for number in (2, 0, 0, 1, 2, 2, 2):
        post(models[number])
    clock.advance(1)
    first = claim()
    store.claims.complete(first, PolicyVersion(first.model_id, 1, "d"), {})
    clock.advance(1)
    places = {job.id: queue(job)["place"] for job in store.jobs.page("team", 100) if job.state == "queued"}
    claimed = []
    while job := claim():
        clock.advance(1)
        store.claims.complete(job, PolicyVersion(job.model_id, job.next_step, "d"), {})
        claimed.append(job.id)
    assert places == {id: place for place, id in enumerate(claimed, start=1)}


def test_the_coordinator_keeps_all_jobs_of_its_base_model(queue, add_model, post, coordinator, store, clock, http):
    job = post(add_model())
    coordinator[BASE]["last_error"] = "OSError: secret"
    assert queue(job)["cause"] == "coordinator" and "secret" not in queue(job)["reason"]
    coordinator["raises"] = RuntimeError()
    assert (queue(job)["cause"], queue(job)["waits"]) == ("coordinator", True)
    coordinator.clear()
    assert "hasn't started" in queue(job)["reason"]
    gone = post(store.models.add("team", "project", "old", "gone", return_existing=True))
    assert queue(gone)["cause"] == "coordinator" and "cancel" in queue(gone)["reason"]


def test_a_running_job_says_what_it_does(queue, add_model, post, claim, coordinator, store):
    job = post(add_model())
    claimed = claim()
    coordinator[BASE] |= {"running_jobs": [job.id], "learners_running": False}
    assert (queue(job)["cause"], queue(job)["place"]) == ("learners", None)
    coordinator[BASE]["learners_running"] = True
    assert queue(job)["cause"] == "prepares"
    store.claims.report_waiting(claimed, "the cluster has no room for 3 learners")
    assert queue(job)["reason"] == "The job waits for learners: the cluster has no room for 3 learners."
    store.claims.record_event(claimed, "training_started", {})
    found = queue(job)
    assert (found["cause"], found["waits"], found["reason"]) == ("trains", False, "The job trains.")
    store.jobs.request_cancel(job.id, "team")
    assert queue(job)["cause"] == "cancelling"


def test_a_lost_attempt_waits_for_its_lease(queue, add_model, post, claim, coordinator, clock):
    model = add_model()
    job, next_one = post(model), post(model)
    claim(lease_s=30)
    for found in (queue(job), queue(next_one)):  # the coordinator has restarted and doesn't know the job
        assert found["cause"] == "lease" and "00:00:30 UTC" in found["reason"], found
    coordinator[BASE]["running_jobs"] = [job.id]
    assert queue(job)["cause"] == "prepares" and queue(next_one)["cause"] == "same_model"
    clock.advance(31)
    assert queue(job)["cause"] == "lease" and "ran out" in queue(job)["reason"]
    assert queue(next_one)["cause"] == "lease"


def test_jobs_at_once_that_wait_for_learners_say_so(queue, add_model, post, coordinator):
    job = post(add_model())
    coordinator[BASE] |= {"running_jobs": ["x"] * AT_ONCE, "waiting_for": "the cluster has no room"}
    assert queue(job)["cause"] == "learners" and "the cluster has no room." in queue(job)["reason"]
