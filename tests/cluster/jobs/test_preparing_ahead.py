"""The next job's batch is made while the learners work, and whatever goes wrong with that is the job's own business."""

import threading
import time

import pytest
from coordinator_fakes import (
    LocalPreparation,
    RecordingLearners,
    RecordingStore,
    make_coordinator,
    make_job,
    trajectory,
)

from tandem.cluster.errors import StageError
from tandem.cluster.jobs.preparing_ahead import LOOK_PERIOD_S, PreparingAhead


class WatchedPreparation(LocalPreparation):
    """Remembers which jobs it prepared, and in which thread. It waits for `gate` where it isn't asked to tick."""

    def __init__(self, base, artifacts):
        super().__init__(base, artifacts)
        self.calls, self.gate, self.fault = [], threading.Event(), None
        self.gate.set()

    def batch(self, base_model, job, tick=None):
        self.calls.append((job.id, threading.current_thread().name))
        if tick is None:
            assert self.gate.wait(20)
            if self.fault:
                raise self.fault
        return super().batch(base_model, job, tick)

    def num_calls(self, job):
        return sum(id == job.id for id, _ in self.calls)


@pytest.fixture
def preparation(base, artifacts):
    return WatchedPreparation(base, artifacts)


@pytest.fixture
def ahead_of(preparation):
    def make(*jobs):
        return PreparingAhead("base", RecordingStore(*jobs), preparation)

    return make


def look(ahead):
    """One look, and its end."""
    time.sleep(LOOK_PERIOD_S)
    ahead.look()
    assert ahead._work.is_done.wait(20)


def nothing():
    pass


def test_a_job_is_prepared_once_however_often_one_looks(ahead_of, preparation, artifacts):
    job = make_job(artifacts)
    ahead = ahead_of(job)
    look(ahead)
    look(ahead)
    batch = ahead.batch(job, nothing)
    assert preparation.calls == [(job.id, "preparing-ahead")]
    expected = LocalPreparation(preparation.worker._base_models["base"], artifacts).batch("base", job)
    assert [row.token_ids.tolist() for row in batch.sequences] == [r.token_ids.tolist() for r in expected.sequences]
    assert batch.metrics() == expected.metrics()


def test_a_job_that_wasnt_foreseen_is_prepared_when_it_is_claimed(ahead_of, preparation, artifacts):
    foreseen, claimed = make_job(artifacts), make_job(artifacts)
    ahead = ahead_of(foreseen)
    look(ahead)
    ahead.batch(claimed, nothing)
    assert [id for id, _ in preparation.calls] == [foreseen.id, claimed.id]
    ahead.batch(foreseen, nothing)
    assert preparation.num_calls(foreseen) == 1


def test_a_claim_waits_for_what_is_under_way_and_may_give_it_up(ahead_of, preparation, artifacts):
    job = make_job(artifacts)
    ahead = ahead_of(job)
    preparation.gate.clear()
    ahead.look()
    deadline = time.monotonic() + 20
    while not preparation.calls:
        assert time.monotonic() < deadline
        time.sleep(0.01)

    def give_up():
        raise KeyError("cancelled")

    with pytest.raises(KeyError, match="cancelled"):
        ahead.batch(job, give_up)
    ticks = []
    batch = ahead.batch(job, lambda: (ticks.append(1), preparation.gate.set()))
    assert ticks and batch.sequences and preparation.num_calls(job) == 1


@pytest.mark.parametrize("fault", [StageError("prepare", "it died.", "Again.", retryable=True), OSError("no disk")])
def test_a_failure_is_left_to_the_job(ahead_of, preparation, artifacts, fault):
    job = make_job(artifacts)
    ahead = ahead_of(job)
    preparation.fault = fault
    look(ahead)
    look(ahead)
    assert preparation.num_calls(job) == 1, "a payload that ends the process must not do so again and again"
    assert ahead.batch(job, nothing).sequences


def test_a_store_that_is_away_is_no_trouble(preparation, artifacts):
    class Away(RecordingStore):
        def next_queued(self, base_model):
            raise OSError("the database is away")

    ahead = PreparingAhead("base", Away(), preparation)
    look(ahead)
    assert ahead.batch(make_job(artifacts), nothing).sequences


def test_the_coordinator_prepares_the_next_job_beside_the_steps_of_this_one(base, preparation, artifacts):
    groups = [{"trajectories": [trajectory(1.0, 20), trajectory(0.0, 21, 22)]}]
    first, second = make_job(artifacts), make_job(artifacts, groups)
    store, seen = RecordingStore(first, second), []

    class Learners(RecordingLearners):
        def step(self, sequences, loss, learning_rate, chunk_size, tick):
            seen.append([row.token_ids.tolist() for row in sequences])
            deadline = time.monotonic() + 20
            while len(store.jobs) == 1 and not preparation.num_calls(second):
                assert time.monotonic() < deadline
                time.sleep(0.05)
                tick()
            return super().step(sequences, loss, learning_rate, chunk_size, tick)

    coordinator = make_coordinator(base, store, artifacts, Learners(), preparation=preparation)
    assert coordinator.run_next() and coordinator.run_next()
    assert preparation.calls == [(first.id, threading.current_thread().name), (second.id, "preparing-ahead")]
    assert store.order == ["training_started", "gradient_step", "complete"] * 2
    alone = LocalPreparation(base, artifacts).batch("base", second)
    assert seen[1] == [row.token_ids.tolist() for row in alone.sequences]
