"""The phases of jobs that a coordinator runs: each end of a job, and a process that is killed."""

import signal
import subprocess
import sys
import time
import uuid
from itertools import pairwise

import pytest
from coordinator_fakes import RecordingLearners, RecordingStore, make_coordinator, make_job
from waiting import wait_until

from tandem.cluster.errors import JobCancelledError, LearnersLostError, StageError
from tandem.cluster.jobs import running_job
from tandem.serve.store.store import Store
from tandem.serve.usage.timeline import timeline

FAULT = StageError("step", "the learner died.", "Retry.", retryable=True)
ENDS = {
    "succeeded": ({}, {}),
    "failed": ({"failures": [StageError("step", "it diverged.", "Lower it.")]}, {}),
    "requeued": ({"failures": [FAULT]}, {}),
    "handed_back": ({"failures": [LearnersLostError("They ended.")]}, {}),
    "cancelled": ({"failures": [JobCancelledError("The user asked.")]}, {}),
    "lost": ({"failures": [SystemExit()]}, {}),
}


@pytest.mark.parametrize("outcome", ENDS)
def test_the_phases_of_an_attempt_are_recorded_however_it_ends(artifacts, base, outcome):
    of_learners, _ = ENDS[outcome]
    heard = []

    class Listener:
        def phase_ended(self, job, phase):
            heard.append((job.id, phase.name))

    job = make_job(artifacts)
    store = RecordingStore(job)
    coordinator = make_coordinator(base, store, artifacts, RecordingLearners(**of_learners))
    coordinator._listeners = [Listener()]
    if outcome == "lost":
        with pytest.raises(SystemExit):
            coordinator.run_next()
    else:
        coordinator.run_next()
    spans, recorded = store.phases[1]
    assert recorded == outcome
    assert sum(span.seconds for span in spans) == pytest.approx(spans[-1].ended_at - spans[0].began_at, abs=1e-4)
    assert all(one.ended_at == other.began_at for one, other in pairwise(spans))
    assert {id for id, _ in heard} == {job.id}
    assert {"prepare", "record", "idle"} <= {name for _, name in heard} or outcome == "lost"


WORK_UNTIL_KILLED = """
import sys, time
from tandem.cluster.jobs import running_job
from tandem.cluster.jobs.running_job import RunningJob, ServiceStop
from tandem.serve.store.store import Store
running_job.RECORD_PHASES_S = 0.05
store = Store(sys.argv[1]).claims
claim = store.claim_next("tandem/tiny", "a process", 0.6)
with RunningJob(claim, store, 0.6, ServiceStop(0)) as job, job.clock.phase("step"):
    job.clock.has_learners(2)
    job.clock.count(trained_tokens=123)
    time.sleep(600)
"""


def test_what_a_killed_process_used_is_accounted_up_to_its_last_record(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path / 'tandem.db'}"
    store = Store(url)
    store.claims.put_initial_version("tandem/tiny", "0" * 64)
    model = store.models.add("default", "tests", "m", "tandem/tiny", return_existing=False)
    job = store.jobs.add(str(uuid.uuid4()), model.id, "payloads/none", {}, "0" * 64)
    process = subprocess.Popen([sys.executable, "-c", WORK_UNTIL_KILLED, url])
    try:
        wait_until(lambda: [a for a in store.phases.of_job(job.id) if a.phases])
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed_at = store.database.now()
    (dead,) = store.phases.of_job(job.id)
    assert dead.outcome is None
    [step] = [row for row in dead.phases if row.name == "step"]
    assert step.trained_tokens == 123 and step.learner_seconds == pytest.approx(2 * step.seconds, abs=0.01)
    claims = []
    wait_until(lambda: claims.append(store.claims.claim_next("tandem/tiny", "another", 30)) or claims[-1])
    claim = claims[-1]
    monkeypatch.setattr(running_job, "RECORD_PHASES_S", 0.0)
    with running_job.RunningJob(claim, store.claims, 30, running_job.ServiceStop(0)) as running:
        with running.clock.phase("step"):
            time.sleep(0.2)
        store.claims.fail(claim, "It diverged.")
        running.outcome = "failed"
    row = store.jobs.get(job.id, "default")
    found = timeline(row, store.phases.of_job(job.id), store.database.now())
    wall_s = (row.ended_at - row.created_at).total_seconds()
    assert sum(stretch.seconds for stretch in found) == pytest.approx(wall_s, rel=0.02)
    named = {stretch.name: stretch for stretch in found}
    assert sum(stretch.seconds for stretch in found if stretch.name != "idle") >= 0.95 * wall_s
    lost = named["wait_lease"]
    assert step.ended_at <= lost.ended_at and lost.began_at <= killed_at
    assert sum(stretch.trained_tokens for stretch in found) == 123
    store.close()
