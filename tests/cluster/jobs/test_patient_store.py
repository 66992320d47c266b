"""A store that fails or hangs for a while, or for good, under a coordinator's writes."""

import threading
import time

import pytest
from coordinator_fakes import RecordingStore, make_job

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.errors import LeaseLostError, StoreUnavailableError
from tandem.cluster.jobs import patient_store
from tandem.cluster.jobs.job import PolicyVersion
from tandem.cluster.jobs.patient_store import PatientStore


class BadStore(RecordingStore):
    """Does something else first at each of the next writes."""

    def __init__(self, *faults):
        super().__init__()
        self.faults = list(faults)

    def complete(self, *arguments):
        if self.faults:
            self.faults.pop(0)()
        super().complete(*arguments)

    def report_waiting(self, *arguments):
        raise OSError("the database is away")


class Clock:
    """Time that passes only in sleep."""

    now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def away():
    raise OSError("the database is away")


@pytest.fixture
def complete(tmp_path):
    job = make_job(Artifacts(str(tmp_path)))
    return lambda store: store.complete(job, PolicyVersion("model", 4, "digest"), {})


def test_a_write_is_repeated_until_the_store_takes_it(complete):
    store = BadStore(away, away)
    complete(PatientStore(store, publish_s=60))
    assert store.order == ["complete"]


def test_a_store_that_stays_away_is_given_up_at_the_deadline(complete, monkeypatch):
    monkeypatch.setattr(patient_store, "time", clock := Clock())
    store = BadStore(*[away] * 100)
    with pytest.raises(StoreUnavailableError, match="OSError: the database is away"):
        complete(PatientStore(store, publish_s=60))
    assert store.order == [] and 50 < clock.now <= 60


def test_a_store_that_hangs_is_given_up_at_the_deadline(complete):
    released = threading.Event()
    store, began = BadStore(released.wait), time.monotonic()
    try:
        with pytest.raises(StoreUnavailableError, match="no answer"):
            complete(PatientStore(store, publish_s=0.3))
        assert time.monotonic() - began < 30
    finally:
        released.set()


def test_a_lost_lease_is_not_argued_with(complete):
    def lost():
        raise LeaseLostError("taken over")

    store = BadStore(lost, away)
    with pytest.raises(LeaseLostError):
        complete(PatientStore(store, publish_s=10))
    assert len(store.faults) == 1


def test_work_goes_on_when_waiting_cannot_be_shown(tmp_path):
    PatientStore(BadStore(), publish_s=10).report_waiting(make_job(Artifacts(str(tmp_path))), "room")
