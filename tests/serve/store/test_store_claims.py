"""Claims of jobs: order, turns, leases, fencing, and each effect once."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import event
from sqlalchemy.exc import StatementError

from tandem.cluster.errors import JobCancelledError, LeaseLostError
from tandem.cluster.jobs.job import PolicyVersion
from tandem.serve.store.store import Store

pytestmark = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)

COMPLETE_AND_DIE = """
import os, signal, sys
from sqlalchemy import event
from sqlalchemy.orm import Session
from tandem.cluster.jobs.job import ClaimedJob, PolicyVersion
from tandem.rl.config import TrainingConfig
from tandem.serve.store.store import Store
url, job_id, model_id = sys.argv[1:]

@event.listens_for(Session, "after_flush_postexec")
def die(session, flush_context):
    os.kill(os.getpid(), signal.SIGKILL)

initial = PolicyVersion(model_id, 0, "0" * 64)
claimed = ClaimedJob(job_id, "", TrainingConfig(), model_id, 1, initial, 1, 0)
Store(url).claims.complete(claimed, PolicyVersion(model_id, 1, "d"), {})
"""


def finish(store, claimed, digest="d1"):
    store.claims.complete(claimed, PolicyVersion(claimed.model_id, claimed.next_step, digest), {"reward": 1.0})


def types(store, job_id, entity="team"):
    return [event.type for event in store.jobs.events(job_id, entity, 100)]


def test_a_claim_carries_what_the_job_needs(store, add_model, add_job, claim):
    model = add_model()
    job = add_job(model, config={"learning_rate": 1e-3, "loss_fn": "ppo"})
    claimed = claim()
    assert (claimed.id, claimed.model_id, claimed.attempt) == (job.id, model.id, 1)
    assert (claimed.config.loss_fn, claimed.config.learning_rate) == ("ppo", 1e-3)
    assert claimed.payload_key == job.payload_key
    assert claimed.version == PolicyVersion(model.id, 0, "0" * 64)
    assert claimed.next_step == 1


def test_jobs_of_a_model_run_one_at_a_time_in_order_of_acceptance(store, add_model, add_job, claim):
    model = add_model()
    jobs = [add_job(model) for _ in range(3)]
    for step, job in enumerate(jobs, start=1):
        claimed = claim()
        assert claimed.id == job.id
        assert claimed.next_step == step
        assert claim() is None, "a second job of the model was claimed while the first one runs"
        finish(store, claimed, f"d{step}")
    assert claim() is None


def test_models_take_turns(store, clock, add_model, add_job, claim):
    first, second, third = (add_model(name) for name in ("first", "second", "third"))
    for _ in range(3):
        add_job(first)
    for _ in range(2):
        add_job(second)
    order = []
    for _ in range(4):
        clock.advance(1)
        claimed = claim()
        order.append(claimed.model_id)
        finish(store, claimed)
        if len(order) == 2:
            add_job(third)  # never claimed before, so it is next
    names = {first.id: "first", second.id: "second", third.id: "third"}
    assert [names[m] for m in order] == ["first", "second", "third", "first"]


def test_models_run_side_by_side(add_model, add_job, claim):
    jobs = {add_job(add_model("a")).id, add_job(add_model("b")).id}
    assert {claim().id, claim().id} == jobs


def test_only_jobs_of_the_base_model_are_claimed(store, add_model, add_job, claim):
    add_job(add_model("other", base_model="another/base"))
    assert claim() is None
    assert claim("another/base") is None, "claimed without a version 0 to start from"
    store.claims.put_initial_version("another/base", "9" * 64)
    assert claim("another/base").version.digest == "9" * 64


def test_version_0_never_changes(store, add_model, add_job, claim):
    store.claims.put_initial_version("tandem/tiny", "f" * 64)
    add_job(add_model())
    assert claim().version.digest == "0" * 64


def test_a_lease_that_ran_out_is_taken_over_and_fences_the_first_claim(store, clock, add_model, add_job, claim):
    model = add_model()
    job = add_job(model)
    first = claim(lease_s=30)
    store.claims.record_event(first, "training_started", {"num_sequences": 4})
    store.claims.record_event(first, "gradient_step", {"loss/train": 0.5})
    clock.advance(29.9)
    assert claim() is None
    clock.advance(0.2)
    second = claim(owner="another")
    assert (second.id, second.attempt, second.num_recorded_gradient_steps) == (first.id, 2, 1)
    for write in (
        lambda: store.claims.renew(first, 30),
        lambda: store.claims.record_event(first, "gradient_step", {"loss/train": 0.4}),
        lambda: finish(store, first),
        lambda: store.claims.fail(first, "no"),
        lambda: store.claims.cancel(first),
        lambda: store.claims.requeue(first, "no"),
        lambda: store.claims.hand_back(first, "no"),
        lambda: store.claims.report_waiting(first, "no"),
    ):
        with pytest.raises(LeaseLostError, match="attempt 2 runs"):
            write()
    assert store.versions.page(model.id, "team", 10) == []
    row = store.jobs.get(job.id, "team")
    assert (row.state, row.attempt, row.owner, row.num_handed_back, row.waiting_for) == (
        "running",
        2,
        "another",
        0,
        None,
    )
    assert types(store, job.id) == ["training_started", "gradient_step"]
    store.claims.record_event(second, "training_started", {"num_sequences": 5})
    store.claims.record_event(second, "gradient_step", {"loss/train": 0.4})
    finish(store, second)
    events = store.jobs.events(job.id, "team", 100)
    assert [(e.seq, e.type) for e in events] == [
        (1, "training_started"),
        (2, "gradient_step"),
        (3, "gradient_step"),
        (4, "training_ended"),
    ]
    assert events[0].data == {"num_sequences": 4}, "training_started changed with the second attempt"


def test_events_asked_for_again_are_recorded_once(store, add_model, add_job, claim):
    """Repeat each write, as after a connection that broke before the answer arrived."""
    job = add_job(add_model())
    claimed = claim()
    for _ in range(2):
        store.claims.record_event(claimed, "training_started", {})
    for index in (0, 0, 1, 1, 0):
        store.claims.record_event(claimed, "gradient_step", {"loss/train": float(index)}, index)
    assert types(store, job.id) == ["training_started", "gradient_step", "gradient_step"]
    assert store.jobs.get(job.id, "team").num_gradient_steps == 2


def test_renewing_keeps_the_lease(store, clock, add_model, add_job, claim):
    add_job(add_model())
    claimed = claim(lease_s=30)
    for _ in range(5):
        clock.advance(20)
        store.claims.renew(claimed, 30)
        assert claim() is None
    finish(store, claimed)


def test_completion_is_applied_once(store, add_model, add_job, claim):
    model = add_model()
    job = add_job(model)
    claimed = claim()
    finish(store, claimed, "a" * 64)
    with pytest.raises(LeaseLostError, match="succeeded"):
        finish(store, claimed, "b" * 64)
    [version] = store.versions.page(model.id, "team", 10)
    assert (version.step, version.digest, version.metrics) == (1, "a" * 64, {"reward": 1.0})
    row = store.jobs.get(job.id, "team")
    assert (row.state, row.step, row.error) == ("succeeded", 1, None)
    assert types(store, job.id) == ["training_ended"]


def test_a_completion_that_fails_leaves_no_trace(store, add_model, add_job, claim):
    model = add_model()
    job = add_job(model)
    claimed = claim()
    with pytest.raises((StatementError, ValueError), match="not JSON compliant"):
        store.claims.complete(claimed, PolicyVersion(model.id, 1, "d"), {"reward": float("nan")})
    assert store.versions.page(model.id, "team", 10) == []
    assert types(store, job.id) == []
    finish(store, claimed)
    assert store.versions.resolve("team", "project", "agent", None).step == 1


def test_a_process_killed_while_it_completes_leaves_no_trace(store_url, store, clock, add_model, add_job, claim):
    """The process is killed when the version and the job's end are written but not committed."""
    model = add_model()
    job = add_job(model)
    first = claim()
    died = subprocess.run([sys.executable, "-c", COMPLETE_AND_DIE, store_url, job.id, model.id], timeout=300)
    assert died.returncode == -signal.SIGKILL
    store.claims.renew(first, 30)  # waits until the database has ended the transaction; the claim still holds
    assert store.versions.page(model.id, "team", 10) == []
    assert types(store, job.id) == []
    clock.advance(31)
    second = claim()
    assert (second.id, second.attempt, second.next_step) == (first.id, 2, 1)
    finish(store, second)
    assert [version.step for version in store.versions.page(model.id, "team", 10)] == [1]


def test_two_coordinators_that_claim_at_once_never_get_one_job(store_url, clock, add_model, add_job):
    model, start = add_model(), Barrier(4)
    stores = [Store(store_url, clock) for _ in range(4)]

    def claim_together(own):
        start.wait(timeout=300)
        return own.claims.claim_next("tandem/tiny", "coordinator", 30)

    with ThreadPoolExecutor(4) as pool:
        for attempt in range(1, 11):
            if attempt == 1:
                add_job(model)
            else:
                clock.advance(31)  # the lease expires, so all try to take over
            claims = [claimed for claimed in pool.map(claim_together, stores) if claimed]
            assert [claimed.attempt for claimed in claims] == [attempt]
    for own in stores:
        own.close()


def test_the_version_is_visible_no_later_than_the_end_of_training(store, add_model, add_job, claim):
    """A reader that sees training_ended also sees the version."""
    model = add_model()
    jobs = [add_job(model) for _ in range(10)]

    def train():
        for _ in jobs:
            finish(store, claim())

    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train)
        for step, job in enumerate(jobs, start=1):
            while not types(store, job.id):
                training.done() and training.result()
            assert store.versions.resolve("team", "project", "agent", None).step >= step
        training.result()


def test_a_failed_job_says_why_and_the_next_one_starts_from_the_same_version(store, add_model, add_job, claim):
    model = add_model()
    job, following = add_job(model), add_job(model)
    store.claims.fail(claim(), "Stage 'step' failed.")
    assert store.jobs.get(job.id, "team").state == "failed"
    assert store.jobs.events(job.id, "team", 10)[-1].data == {"error_message": "Stage 'step' failed."}
    claimed = claim()
    assert (claimed.id, claimed.version.step, claimed.next_step) == (following.id, 0, 1)


def test_a_job_given_back_is_claimed_again_at_once(store, add_model, add_job, claim):
    model = add_model()
    job = add_job(model)
    add_job(model)
    first = claim()
    store.claims.requeue(first, "A learner died.")
    assert (store.jobs.get(job.id, "team").state, store.jobs.get(job.id, "team").error) == ("queued", "A learner died.")
    with pytest.raises(LeaseLostError):
        store.claims.renew(first, 30)
    again = claim()
    assert (again.id, again.attempt) == (job.id, 2)


def test_a_job_handed_back_at_a_stop_keeps_its_tries(store, add_model, add_job, claim):
    model = add_model()
    job = add_job(model)
    first = claim()
    assert (first.attempt, first.num_tries) == (1, 1)
    store.claims.hand_back(first, "The service was stopped.")
    assert (store.jobs.get(job.id, "team").state, store.jobs.get(job.id, "team").error) == (
        "queued",
        "The service was stopped.",
    )
    with pytest.raises(LeaseLostError):
        finish(store, first)
    second = claim()
    assert (second.attempt, second.num_tries) == (2, 1)
    store.claims.requeue(second, "A learner died.")
    third = claim()
    assert (third.attempt, third.num_tries) == (3, 2)


def test_what_a_job_waits_for_is_shown_until_it_begins(store, clock, add_model, add_job, claim):
    job = add_job(add_model())

    def waits_for():
        return store.jobs.get(job.id, "team").waiting_for

    claimed = claim()
    for ends_it in (
        lambda: store.claims.report_waiting(claimed, None),
        lambda: store.claims.record_event(claimed, "training_started", {}),
        lambda: store.claims.record_event(claimed, "training_started", {}),  # by an attempt that isn't the first
        lambda: store.claims.requeue(claimed, "A learner died."),
    ):
        store.claims.report_waiting(claimed, "1 GPU; none is free.")
        assert waits_for() == "1 GPU; none is free."
        ends_it()
        assert waits_for() is None
    claimed = claim()
    store.claims.report_waiting(claimed, "1 GPU; none is free.")
    store.claims.hand_back(claimed, "The service was stopped.")
    assert waits_for() is None
    claimed = claim(lease_s=30)
    store.claims.report_waiting(claimed, "1 GPU; none is free.")
    clock.advance(31)
    claimed = claim()
    assert waits_for() is None, "the waiting coordinator no longer runs the job"
    store.claims.report_waiting(claimed, "1 GPU; none is free.")
    store.claims.fail(claimed, "no")
    assert waits_for() is None


def test_cancelling_a_queued_job_ends_it_at_once(store, add_model, add_job, claim):
    job = add_job(add_model())
    assert store.jobs.request_cancel(job.id, "team").state == "cancelled"
    [event] = store.jobs.events(job.id, "team", 10)
    assert event.type == "training_failed"
    assert "cancelled" in event.data["error_message"]
    assert claim() is None
    assert store.jobs.request_cancel(job.id, "team").state == "cancelled"
    assert len(store.jobs.events(job.id, "team", 10)) == 1


def test_cancelling_a_running_job_is_asked_of_its_coordinator(store, clock, add_model, add_job, claim):
    job = add_job(add_model())
    claimed = claim(lease_s=30)
    assert store.jobs.request_cancel(job.id, "team").state == "running"
    clock.advance(20)
    with pytest.raises(JobCancelledError):
        store.claims.renew(claimed, 30)
    clock.advance(20)
    assert claim() is None, "the lease wasn't extended while the job is being cancelled"
    store.claims.cancel(claimed)
    assert store.jobs.get(job.id, "team").state == "cancelled"
    assert types(store, job.id) == ["training_failed"]


@pytest.mark.parametrize("give_back", ["requeue", "hand_back"])
def test_a_job_to_be_cancelled_is_not_tried_again(store, add_model, add_job, claim, give_back):
    job = add_job(add_model())
    claimed = claim()
    store.jobs.request_cancel(job.id, "team")
    getattr(store.claims, give_back)(claimed, "A learner died.")
    assert store.jobs.get(job.id, "team").state == "cancelled"
    assert claim() is None


def test_deleting_a_model_ends_its_jobs_and_fences_the_runner(store, add_model, add_job, claim):
    model = add_model()
    running, queued = add_job(model), add_job(model)
    claimed = claim()
    store.models.delete(model.id, "team")
    for job in (running, queued):
        assert store.jobs.get(job.id, "team").state == "failed"
        [event] = store.jobs.events(job.id, "team", 10)
        assert event.type == "training_failed"
        assert "deleted" in event.data["error_message"]
    with pytest.raises(LeaseLostError, match="already failed"):
        finish(store, claimed)
    assert claim() is None


def test_events_that_end_a_job_come_from_its_end_alone(store, add_model, add_job, claim):
    add_job(add_model())
    with pytest.raises(ValueError, match="training_ended"):
        store.claims.record_event(claim(), "training_ended", {})


def test_concurrent_claimers_never_share_a_model(store_url, clock, store, add_model, add_job):
    """Six stores on one database, as in six processes, claim and complete without pause."""
    models = [add_model(f"m{i}") for i in range(4)]
    jobs = [add_job(model).id for _ in range(5) for model in models]
    running, overlaps, done = set(), [], []

    def work(worker):
        own = Store(store_url, clock)
        while len(done) < len(jobs):
            claimed = own.claims.claim_next("tandem/tiny", f"worker-{worker}", 30)
            if claimed is None:
                continue
            if claimed.model_id in running:
                overlaps.append(claimed.model_id)
            running.add(claimed.model_id)
            own.claims.record_event(claimed, "gradient_step", {"loss/train": 0.0})
            running.remove(claimed.model_id)
            finish(own, claimed, f"{claimed.model_id}-{claimed.next_step}"[:64])
            done.append(claimed.id)
        own.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert overlaps == []
    assert sorted(done) == sorted(jobs)
    for model in models:
        assert [v.step for v in store.versions.page(model.id, "team", 100)] == list(range(1, 6))
    for index, job in enumerate(jobs):
        assert store.jobs.get(job, "team").step == 1 + index // len(models), "a model's jobs ran out of order"


def test_looking_for_work_reads_no_ended_jobs(store, add_model, add_job, claim):
    add_job(add_model())
    plans = []

    def explain(connection, cursor, statement, parameters, *_):
        if "FROM jobs" in statement and not statement.startswith("EXPLAIN"):
            query_plan = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
            plan = connection.connection.cursor()
            if query_plan == "EXPLAIN":
                plan.execute("SET LOCAL enable_seqscan = off")  # which it prefers for small tables
            plan.execute(f"{query_plan} {statement}", parameters)
            plans.append(str(plan.fetchall()))

    event.listen(store.database._engine, "before_cursor_execute", explain)
    assert store.claims.next_queued("tandem/tiny") is not None
    assert claim() is not None
    assert len(plans) >= 3
    assert all("jobs_open" in plan for plan in plans[:3]), plans


def test_everything_committed_survives_the_process(store_url, clock, store, add_model, add_job):
    job = add_job(add_model())
    again = Store(store_url, clock)
    assert again.jobs.get(job.id, "team").state == "queued"
    if not store_url.startswith("sqlite"):
        return
    with again.database._engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    again.close()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000}
