"""The metrics that a coordinator records about its jobs."""

import pytest
from coordinator_fakes import RecordingLearners, RecordingStore, make_coordinator, make_job, trajectory
from recorded_metrics import recorded

from tandem.cluster.errors import JobCancelledError, LearnersLostError, LeaseLostError, StageError
from tandem.cluster.jobs.job_metrics import MAX_RECENT, JobMetrics
from tandem.cluster.jobs.phases import Phase

ENDED, FAILED = "tandem_jobs_ended_total", "tandem_job_failures_total"


def run(base, artifacts, learners=None, job=None, **settings):
    """Run a job to its end and return what was recorded."""
    with recorded() as metrics:
        store = RecordingStore(job or make_job(artifacts))
        make_coordinator(base, store, artifacts, learners or RecordingLearners(), **settings).run_next()
    return metrics


def test_a_job_that_succeeds(base, artifacts):
    metrics = run(base, artifacts)
    assert metrics.of(ENDED, base_model=base.name, state="succeeded") == [1.0]
    assert metrics.of(FAILED) == []
    [seconds] = metrics.of("tandem_publish_seconds", base_model=base.name)
    assert seconds > 0


def test_trained_tokens_are_those_of_the_steps(base, artifacts):
    class Trained(RecordingLearners):
        def step(self, *args):
            return super().step(*args) | {"data/step_trainer_tokens": 48.0}

    assert run(base, artifacts, Trained()).of("tandem_tokens_trained_total") == [48.0]


def test_a_failure_is_counted_by_its_stage_and_whether_it_is_final(base, artifacts):
    death = StageError("step", "a learner died.", "New ones start.", retryable=True)
    again = run(base, artifacts, RecordingLearners([death]), max_attempts=2)
    assert again.of(FAILED, stage="step", code="retried") == [1.0] and again.of(ENDED) == []
    final = run(base, artifacts, RecordingLearners([death]), make_job(artifacts, attempt=2), max_attempts=2)
    assert final.of(FAILED, stage="step", code="failed") == final.of(ENDED, state="failed") == [1.0]


@pytest.mark.parametrize(
    ("error", "stage", "code"),
    [(LearnersLostError("x"), "learners", "learners_lost"), (KeyError("x"), "unexpected", "unexpected")],
)
def test_other_failures_have_a_code_of_their_own(base, artifacts, error, stage, code):
    metrics = run(base, artifacts, RecordingLearners([error]))
    assert metrics.of(FAILED, stage=stage, code=code) == [1.0] and len(metrics.of(FAILED)) == 1


def test_a_payload_that_is_wrong_fails_in_its_stage(base, artifacts):
    groups = [{"trajectories": [trajectory(1.0, 10), trajectory(0.0, 999_999)]}]
    assert run(base, artifacts, job=make_job(artifacts, groups)).of(FAILED, stage="prepare", code="failed") == [1.0]


def test_cancelled_jobs_and_lost_leases_are_no_failures(base, artifacts):
    cancelled = run(base, artifacts, RecordingLearners([JobCancelledError("x")]))
    assert cancelled.of(ENDED, state="cancelled") == [1.0] and cancelled.of(FAILED) == []
    lost = run(base, artifacts, RecordingLearners([LeaseLostError("x")]))
    assert lost.of("tandem_lease_losses_total") == [1.0] and lost.of(ENDED) == lost.of(FAILED) == []


def test_phases_are_a_histogram_and_an_exact_sum():
    metrics = JobMetrics("tiny")
    with recorded() as found:
        for seconds in (0.25, 0.5):
            metrics.phase_ended(None, Phase("score", 0.0, seconds, seconds))
    assert found.of("tandem_phase_seconds", phase="score", base_model="tiny") == [0.25, 0.5]
    assert found.total("tandem_phase_time_seconds_total", phase="score") == 0.75


def test_the_last_publications_are_kept():
    metrics = JobMetrics("tiny")
    for number in range(MAX_RECENT + 5):
        metrics.published(float(number))
    assert metrics.recent_publications == [float(number) for number in range(5, MAX_RECENT + 5)]
