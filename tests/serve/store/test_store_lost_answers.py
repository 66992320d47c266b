"""If the connection breaks between a commit and its answer, no effect is repeated or lost."""

import threading

import pytest
from serve_fakes import groups
from sqlalchemy import event

from tandem.cluster.errors import LeaseLostError
from tandem.cluster.jobs.job import PolicyVersion
from tandem.cluster.jobs.patient_store import PatientStore

pytestmark = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def lose_next_answer(store, monkeypatch):
    """Make the next write commit and then raise the error of a broken connection."""
    dialect, is_armed = store.database._engine.dialect, threading.Event()
    commit = dialect.do_commit

    def commit_and_break(connection):
        monkeypatch.setattr(dialect, "do_commit", commit)
        commit(connection)
        raise dialect.loaded_dbapi.OperationalError("the connection is lost")

    @event.listens_for(store.database._writer, "commit")
    def before_commit(_connection):
        if is_armed.is_set():
            is_armed.clear()
            monkeypatch.setattr(dialect, "do_commit", commit_and_break)

    return is_armed.set


@pytest.fixture
def events(store):
    return lambda job: [event.type for event in store.jobs.events(job.id, "team", 100)]


def test_a_job_runs_to_one_end(store, add_model, add_job, claim, lose_next_answer, events):
    model = add_model()
    job = add_job(model)
    patient, claimed = PatientStore(store.claims, publish_s=30), claim()
    lose_next_answer()
    patient.record_event(claimed, "training_started", {})
    for index in range(2):
        lose_next_answer()
        patient.record_event(claimed, "gradient_step", {"loss/train": 0.5}, index)
    lose_next_answer()
    with pytest.raises(LeaseLostError, match="already succeeded"):
        patient.complete(claimed, PolicyVersion(model.id, 1, "d1"), {})
    assert events(job) == ["training_started", "gradient_step", "gradient_step", "training_ended"]
    assert [version.step for version in store.versions.page(model.id, "team", 10)] == [1]
    assert claim() is None


@pytest.mark.parametrize("give_back, tries", [("requeue", 2), ("hand_back", 1)])
def test_a_job_is_given_back_once(store, add_model, add_job, claim, lose_next_answer, give_back, tries):
    add_job(add_model())
    claimed = claim()
    lose_next_answer()
    with pytest.raises(LeaseLostError, match="already queued"):
        getattr(PatientStore(store.claims, publish_s=30), give_back)(claimed, "The service was stopped.")
    again = claim()
    assert (again.attempt, again.num_tries) == (2, tries)


def test_a_posted_job_keeps_its_payload_and_a_repeat_finds_it(http, model, claim, services, lose_next_answer):
    body = {"model_id": model["id"], "trajectory_groups": groups()}

    def post():
        return http.post("/v1/preview/training-jobs", json=body, headers={"Idempotency-Key": "k"})

    lose_next_answer()
    lost = post()
    assert (lost.status_code, lost.json()["error"]["code"]) == (503, "store_unavailable")
    found = post()
    assert found.status_code == 200
    claimed = claim()
    assert claimed.id == found.json()["id"]
    assert services.artifacts.read_blob(claimed.payload_key)
    assert claim() is None
