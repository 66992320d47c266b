"""Every second of a job, from its acceptance to its end, has a name. The store's clock is the test's."""

from datetime import timedelta
from itertools import pairwise

import pytest

from tandem.cluster.jobs.job import PolicyVersion
from tandem.cluster.jobs.phases import Phase
from tandem.serve.usage.timeline import timeline

pytestmark = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)


def phases(start, *named, **of_last):
    """Return phases of these seconds that follow each other."""
    found, at = [], start.timestamp()
    for index, (name, seconds) in enumerate(named):
        amounts = of_last if index == len(named) - 1 else {}
        found.append(Phase(name, at, at + seconds, seconds, **amounts))
        at += seconds
    return found


@pytest.fixture
def shown(store, clock):
    def shown(job):
        row = store.jobs.get(job.id, "team")
        found = timeline(row, store.phases.of_job(job.id), clock.now)
        assert sum(stretch.seconds for stretch in found) == pytest.approx(
            ((row.ended_at or clock.now) - row.created_at).total_seconds()
        )
        assert all(one.ended_at == other.began_at for one, other in pairwise(found))
        return [(stretch.name, stretch.seconds, stretch.attempt) for stretch in found]

    return shown


def test_a_job_that_succeeds_was_queued_and_then_in_its_phases(store, clock, add_model, add_job, claim, shown):
    job = add_job(add_model())
    assert shown(job) == []
    clock.advance(3)
    assert shown(job) == [("queued", 3, None)]
    claimed = claim()
    began = clock.now
    clock.advance(12)
    assert shown(job) == [("queued", 3, None), ("idle", 12, 1)]  # nothing is recorded yet
    store.claims.record_phases(claimed, phases(began, ("prepare", 2), ("step", 8)))
    assert shown(job) == [("queued", 3, None), ("prepare", 2, 1), ("step", 10, 1)]
    store.claims.complete(claimed, PolicyVersion(claimed.model_id, 1, "d1"), {})
    store.claims.record_phases(claimed, phases(began, ("prepare", 2), ("step", 9), ("record", 4)), "succeeded")
    assert shown(job) == [("queued", 3, None), ("prepare", 2, 1), ("step", 9, 1), ("record", 1, 1)]
    clock.advance(1000)
    assert shown(job)[-1] == ("record", 1, 1)


@pytest.mark.parametrize("how", ["handed_back", "requeued"])
def test_a_job_that_is_given_back_is_queued_until_its_next_attempt(store, clock, add_model, add_job, claim, shown, how):
    job = add_job(add_model())
    first, began = claim(), clock.now
    clock.advance(5)
    give_back = store.claims.hand_back if how == "handed_back" else store.claims.requeue
    give_back(first, "the learners died")
    store.claims.record_phases(first, phases(began, ("load", 5)), how)
    clock.advance(7)
    assert shown(job) == [("load", 5, 1), ("queued", 7, None)]
    second, began = claim(), clock.now
    clock.advance(2)
    store.claims.fail(second, "it diverged")
    store.claims.record_phases(second, phases(began, ("step", 2)), "failed")
    assert shown(job) == [("load", 5, 1), ("queued", 7, None), ("step", 2, 2)]


def test_the_time_of_a_dead_attempt_is_known_up_to_its_last_record(store, clock, add_model, add_job, claim, shown):
    job = add_job(add_model())
    first, began = claim(lease_s=30), clock.now
    clock.advance(10)
    store.claims.record_phases(first, phases(began, ("load", 4), ("step", 6), learner_seconds=12.0))
    clock.advance(21)  # killed meanwhile
    assert shown(job) == [("load", 4, 1), ("step", 6, 1), ("wait_lease", 21, 1)]
    second, began = claim(), clock.now
    clock.advance(1)
    store.claims.record_phases(second, phases(began, ("step", 1), learner_seconds=2.0))
    assert shown(job) == [("load", 4, 1), ("step", 6, 1), ("wait_lease", 21, None), ("step", 1, 2)]
    found = timeline(store.jobs.get(job.id, "team"), store.phases.of_job(job.id), clock.now)
    assert sum(stretch.learner_seconds for stretch in found) == 14
    assert "attempt 1" in found[2].reason
    assert [stretch.is_running for stretch in found] == [False, False, False, True]


def test_a_job_that_is_cancelled_in_the_queue_was_queued(store, clock, add_model, add_job, shown):
    job = add_job(add_model())
    clock.advance(6)
    store.jobs.request_cancel(job.id, "team")
    clock.advance(60)
    assert shown(job) == [("queued", 6, None)]


def test_a_job_that_is_cancelled_after_it_was_handed_back_was_queued(store, clock, add_model, add_job, claim, shown):
    job = add_job(add_model())
    first, began = claim(), clock.now
    clock.advance(2)
    store.claims.hand_back(first, "stop")
    store.claims.record_phases(first, phases(began, ("load", 2)), "handed_back")
    clock.advance(5)
    store.jobs.request_cancel(job.id, "team")
    clock.advance(60)
    assert shown(job) == [("load", 2, 1), ("queued", 5, None)]


def test_a_record_that_comes_late_changes_nothing(store, clock, add_model, add_job, claim, shown):
    job = add_job(add_model())
    claimed, began = claim(), clock.now
    clock.advance(9)
    store.claims.record_phases(claimed, phases(began, ("load", 4), ("step", 5)))
    store.claims.record_phases(claimed, phases(began, ("load", 3)))
    assert shown(job) == [("load", 4, 1), ("step", 5, 1)]


def test_jobs_of_earlier_releases_have_no_phases(store, clock, add_model, add_job, claim, shown):
    from sqlalchemy import delete

    from tandem.serve.store.tables.usage import AttemptRow

    job = add_job(add_model())
    clock.advance(1)
    claimed = claim()
    clock.advance(2)
    store.claims.fail(claimed, "diverged")
    with store.database.write() as session:
        session.execute(delete(AttemptRow))
    assert shown(job) == [("queued", 1, None), ("idle", 2, None)]


def test_what_is_recorded_is_charged_once(store, clock, add_model, add_job, claim):
    from sqlalchemy import select

    from tandem.serve.store.tables.usage import UsageRow

    model = add_model()
    job = add_job(model)
    claimed, began = claim(), clock.now + timedelta(minutes=59)
    clock.advance(59 * 60)
    for _ in range(2):  # the answer was lost
        store.claims.record_phases(claimed, phases(began, ("load", 30), ("step", 20), learner_seconds=40.0))
    clock.advance(120)  # the next hour
    store.claims.record_phases(
        claimed, phases(began, ("load", 30), ("step", 140), learner_seconds=280.0, trained_tokens=900), "succeeded"
    )
    with store.database.read() as session:
        rows = session.scalars(select(UsageRow).order_by(UsageRow.start, UsageRow.phase)).all()
    assert [(row.start.hour, row.phase, row.seconds, row.learner_seconds, row.trained_tokens) for row in rows] == [
        (0, "load", 30, 0, 0),
        (0, "step", 20, 40, 0),
        (1, "step", 120, 240, 900),
    ]
    assert {(row.entity, row.base_model, row.model_id, row.job_id, row.step) for row in rows} == {
        ("team", "tandem/tiny", model.id, job.id, 1)
    }
