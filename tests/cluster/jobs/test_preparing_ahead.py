"""The next job's batch is prepared while the learners work. If that fails, only the next job fails."""

import threading

import pytest
from coordinator_fakes import (
    LocalPreparation,
    RecordingLearners,
    RecordingStore,
    make_coordinator,
    make_job,
    trajectory,
)
from waiting import wait_until

from tandem.cluster.errors import StageError
from tandem.cluster.jobs import preparing_ahead
from tandem.cluster.jobs.preparing_ahead import PreparingAhead


class WatchedPreparation(LocalPreparation):
    """Records which jobs it prepared, and in which thread. Ahead of a claim, it waits for `gate`."""

    def __init__(self, base, artifacts):
        super().__init__(base, artifacts)
        self.calls, self.gate, self.fault = [], threading.Event(), None
        self.gate.set()

    def batch(self, base_model, job, on_wait=None, on_cpu=lambda seconds: None):
        self.calls.append((job.id, threading.current_thread().name))
        if on_wait is None:
            assert self.gate.wait(300)
            if self.fault:
                raise self.fault
        return super().batch(base_model, job, on_wait, on_cpu)

    def num_calls(self, job):
        return sum(id == job.id for id, _ in self.calls)


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    monkeypatch.setattr(preparing_ahead, "LOOK_PERIOD_S", 0.01)


@pytest.fixture
def preparation(base, artifacts):
    return WatchedPreparation(base, artifacts)


@pytest.fixture
def ahead_of(preparation):
    def make(*jobs):
        return PreparingAhead("base", RecordingStore(*jobs), preparation)

    return make


def look(ahead):
    """Stay in `while_training` until the queue has been polled and any job found has been prepared."""
    store = ahead._store
    num_looks = store.num_looks
    with ahead.while_training():
        wait_until(lambda: store.num_looks >= num_looks + 2)


def nothing():
    pass


def test_several_looks_prepare_a_job_once(ahead_of, preparation, artifacts):
    job = make_job(artifacts)
    ahead = ahead_of(job)
    look(ahead)
    look(ahead)
    batch = ahead.batch(job, nothing)
    assert preparation.calls == [(job.id, "preparing-ahead")]
    expected = LocalPreparation(preparation.worker._base_models["base"], artifacts).batch("base", job)
    assert [row.token_ids.tolist() for row in batch.sequences] == [r.token_ids.tolist() for r in expected.sequences]
    assert batch.metrics() == expected.metrics()


def test_an_unforeseen_job_is_prepared_when_it_is_claimed(ahead_of, preparation, artifacts):
    foreseen, claimed = make_job(artifacts), make_job(artifacts)
    ahead = ahead_of(foreseen)
    look(ahead)
    ahead.batch(claimed, nothing)
    assert [id for id, _ in preparation.calls] == [foreseen.id, claimed.id]
    ahead.batch(foreseen, nothing)
    assert preparation.num_calls(foreseen) == 1


def test_a_claim_waits_for_a_preparation_in_progress_and_may_abandon_it(ahead_of, preparation, artifacts):
    job = make_job(artifacts)
    ahead = ahead_of(job)
    preparation.gate.clear()
    with ahead.while_training():
        wait_until(lambda: preparation.calls)

    def give_up():
        raise KeyError("cancelled")

    with pytest.raises(KeyError, match="cancelled"):
        ahead.batch(job, give_up)
    batch = ahead.batch(job, preparation.gate.set)
    assert preparation.gate.is_set() and batch.sequences and preparation.num_calls(job) == 1


@pytest.mark.parametrize("fault", [StageError("prepare", "it died.", "Again.", retryable=True), OSError("no disk")])
def test_a_failure_is_left_to_the_job(ahead_of, preparation, artifacts, fault):
    job = make_job(artifacts)
    ahead = ahead_of(job)
    preparation.fault = fault
    look(ahead)
    look(ahead)
    assert preparation.num_calls(job) == 1, "a payload that kills the process must not be retried without limit"
    assert ahead.batch(job, nothing).sequences


def test_a_store_that_fails_does_no_harm(preparation, artifacts):
    class Away(RecordingStore):
        def next_queued(self, base_model):
            super().next_queued(base_model)
            raise OSError("the database is away")

    ahead = PreparingAhead("base", Away(), preparation)
    look(ahead)
    assert ahead.batch(make_job(artifacts), nothing).sequences


def test_the_next_job_is_prepared_during_the_steps_of_the_current_one(base, preparation, artifacts):
    groups = [{"trajectories": [trajectory(1.0, 20), trajectory(0.0, 21, 22)]}]
    first, second = make_job(artifacts), make_job(artifacts, groups)
    store, seen = RecordingStore(first, second), []

    class Learners(RecordingLearners):
        def step(self, sequences, *arguments):
            seen.append([row.token_ids.tolist() for row in sequences])
            wait_until(lambda: not store.jobs or preparation.num_calls(second))
            return super().step(sequences, *arguments)

    coordinator = make_coordinator(base, store, artifacts, Learners(), preparation=preparation)
    assert coordinator.run_next() and coordinator.run_next()
    assert preparation.calls == [(first.id, threading.current_thread().name), (second.id, "preparing-ahead")]
    assert store.order == ["training_started", "gradient_step", "complete"] * 2
    alone = LocalPreparation(base, artifacts).batch("base", second)
    assert seen[1] == [row.token_ids.tolist() for row in alone.sequences]
