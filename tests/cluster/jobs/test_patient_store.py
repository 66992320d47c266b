"""A store that fails for a while, or does not recover, during a coordinator's writes."""

import pytest
from coordinator_fakes import RecordingStore, make_job

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.errors import LeaseLostError, StoreUnavailableError
from tandem.cluster.jobs.job import PolicyVersion
from tandem.cluster.jobs.patient_store import PatientStore


class BadStore(RecordingStore):
    """Calls the next of `faults` before each write."""

    def __init__(self, *faults):
        super().__init__()
        self.faults = list(faults)

    def complete(self, *arguments):
        if self.faults:
            self.faults.pop(0)()
        super().complete(*arguments)

    def report_waiting(self, *arguments):
        raise OSError("the database is away")


def away():
    raise OSError("the database is away")


@pytest.fixture
def complete(tmp_path):
    job = make_job(Artifacts(str(tmp_path)))
    return lambda store: store.complete(job, PolicyVersion("model", 4, "digest"), {})


def test_a_write_is_retried_until_the_store_accepts_it(complete):
    store = BadStore(away, away)
    complete(PatientStore(store, publish_s=60))
    assert store.order == ["complete"]


def test_a_store_that_does_not_recover_is_given_up(complete):
    store = BadStore(*[away] * 100)
    with pytest.raises(StoreUnavailableError, match="OSError: the database is away"):
        complete(PatientStore(store, publish_s=0.5))
    assert store.order == [] and 90 <= len(store.faults) < 99, "retries stopped early, or had no pauses"


def test_a_write_under_a_lost_lease_is_not_retried(complete):
    def lost():
        raise LeaseLostError("taken over")

    store = BadStore(lost, away)
    with pytest.raises(LeaseLostError):
        complete(PatientStore(store, publish_s=10))
    assert len(store.faults) == 1


def test_work_continues_when_waiting_cannot_be_shown(tmp_path):
    PatientStore(BadStore(), publish_s=10).report_waiting(make_job(Artifacts(str(tmp_path))), "room")
