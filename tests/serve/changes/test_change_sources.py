"""Changes that are found by comparing the store with its state at the last look."""

import pytest

from tandem.cluster.jobs.job import PolicyVersion
from tandem.serve.alerts.findings import Finding
from tandem.serve.alerts.store import AlertStore, Viewer
from tandem.serve.changes.change import Change
from tandem.serve.changes.history import History
from tandem.serve.changes.sources import MAX_VERSIONS, AlertSource, JobSource, ModelSource
from tandem.serve.store.changes import MAX_EVENTS, NUM_RECENT


@pytest.fixture
def jobs(store):
    source = JobSource(store.changes)
    return lambda: [(c.kind, c.data.get("state") or c.data.get("type"), c.entity) for c in source.look()]


@pytest.fixture
def models(store):
    source = ModelSource(store.changes)
    return lambda: [(c.kind, c.data.get("state") or c.data.get("step"), c.entity) for c in source.look()]


def test_the_life_of_a_job(store, add_model, add_job, claim, jobs):
    model = add_model()
    add_job(model)
    assert jobs() == []  # the state at the first look is no change
    add_job(model, body="1" * 64)
    assert jobs() == [("job", "queued", "team")]
    claimed = claim()
    store.claims.record_event(claimed, "training_started", {})
    store.claims.record_event(claimed, "gradient_step", {"loss/train": 1.0}, 0)
    assert jobs() == [
        ("event", "training_started", "team"),
        ("event", "gradient_step", "team"),
        ("job", "running", "team"),
    ]
    store.claims.record_event(claimed, "gradient_step", {"loss/train": 0.5}, 1)
    assert jobs() == [("event", "gradient_step", "team")]
    assert jobs() == []
    store.claims.complete(claimed, PolicyVersion(model.id, 1, "d"), {})
    assert jobs() == [("event", "training_ended", "team"), ("job", "succeeded", "team")]


def test_a_lease_that_is_renewed_is_no_change(store, add_model, add_job, claim, jobs):
    add_job(add_model())
    claimed = claim()
    jobs()
    store.claims.renew(claimed, 30)
    assert jobs() == []
    store.claims.report_waiting(claimed, "there is no room")
    assert jobs() == [("job", "running", "team")]


def test_a_job_that_begins_and_ends_between_two_looks_is_reported_once(store, add_model, add_job, jobs):
    model = add_model()
    jobs()
    job = add_job(model)
    store.jobs.request_cancel(job.id, "team")
    assert jobs() == [("event", "training_failed", "team"), ("job", "cancelled", "team")]
    assert jobs() == []


def test_jobs_that_have_ended_before_the_last_ones_are_not_new(store, add_model, add_job, jobs, monkeypatch):
    """An old job among those that are looked at again is one that was known before."""
    model = add_model()
    for number in range(3):
        store.jobs.request_cancel(add_job(model, body=f"{number:064d}").id, "team")
    open_job = add_job(model)
    monkeypatch.setattr("tandem.serve.store.changes._RECENT", store_recent(1))
    jobs()
    monkeypatch.setattr("tandem.serve.store.changes._RECENT", store_recent(NUM_RECENT))
    assert jobs() == []
    store.jobs.request_cancel(open_job.id, "team")
    assert [change[:2] for change in jobs()] == [("event", "training_failed"), ("job", "cancelled")]


def store_recent(limit):
    from tandem.serve.store.changes import _JOBS
    from tandem.serve.store.tables.training import JobRow

    return _JOBS.order_by(JobRow.number.desc()).limit(limit)


def test_many_events_at_once_are_cut_to_the_last_ones(store, add_model, add_job, claim):
    add_job(add_model())
    claimed, source = claim(), JobSource(store.changes)
    source.look()
    for index in range(MAX_EVENTS + 5):
        store.claims.record_event(claimed, "gradient_step", {}, index)
    seqs = [change.data["seq"] for change in source.look() if change.kind == "event"]
    assert seqs == list(range(6, MAX_EVENTS + 6))


def test_models_and_versions(store, add_model, add_job, claim, models):
    first = add_model()
    assert models() == []
    other = add_model("other", entity="others")
    assert models() == [("model", "created", "others")]
    add_job(first)
    store.claims.complete(claim(), PolicyVersion(first.id, 1, "d"), {})
    assert models() == [("version", 1, "team")]
    assert models() == []
    store.models.delete(other.id, "others")
    assert models() == [("model", "deleted", "others")]


def test_an_import_far_ahead_reports_the_newest_versions_only(store, add_model, add_job, claim, models):
    model = add_model()
    models()
    add_job(model)
    store.claims.complete(claim(), PolicyVersion(model.id, 500, "d"), {})
    assert [step for _, step, _ in models()] == list(range(501 - MAX_VERSIONS, 501))


def test_the_history_keeps_the_last_messages_of_each_entity():
    history = History(max_kept=2)
    mine, theirs = Change("team", "model", {}), Change("others", "model", {})
    history.add([mine, theirs, theirs, theirs])
    assert history.after("team", 0) == [(1, mine)]  # what others do drops nothing of this entity
    assert history.after("others", 1) is None  # message 2 isn't kept any more
    assert history.after("others", 2) == [(3, theirs), (4, theirs)]
    assert history.after("others", 4) == []
    assert history.number_of(history.id_of(3)) == 3
    for unknown in ("", "x", History().id_of(3), history.id_of(5), history.id_of(3) + "x"):
        assert history.number_of(unknown) is None


def test_an_alert_opens_is_acknowledged_and_ends(store):
    alerts, source = AlertStore(store.database), AlertSource(store.changes)
    alerts.open([Finding("failed_jobs", "old", "title", "cause", "remedy", "team")], [])
    assert source.look() == []
    about = ("title", "cause", "remedy")
    [row, _] = alerts.open([Finding("stuck_job", "1", *about, "team"), Finding("disk_nearly_full", "a", *about)], [])
    data = {"id": row.id, "kind": "stuck_job", "state": "open", "acknowledged": False}
    assert source.look() == [Change("team", "alert", data, needs_train=True)]
    assert source.look() == []
    alerts.acknowledge(row.id, Viewer("team", False), "key")
    assert [change.data for change in source.look()] == [data | {"acknowledged": True}]
    alerts.resolve(["stuck_job:1"], [])
    assert [change.data["state"] for change in source.look()] == ["resolved"]
    assert source.look() == []
