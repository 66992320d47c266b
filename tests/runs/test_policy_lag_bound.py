"""The bound on policy lag, against a service whose jobs and completions take random times."""

import pytest
from counting_environment import Numbered

from tandem.rl.environments.rollouts import TaskStream
from tandem.runs.errors import PolicyLagError


@pytest.mark.parametrize("environment", ["Numbered", "TwoTurns"])
@pytest.mark.parametrize("max_lag", [0, 1, 3])
def test_no_turn_is_older_than_the_bound(service, task_file, do_run, max_lag, environment):
    service.training_s, service.completion_s = 0.15, 0.1
    do_run(task_file(environment, training={"jobs": 8, "max_policy_lag": max_lag}))
    assert [job.step for job in service.jobs] == list(range(1, 9))
    assert [job.trained_on for job in service.jobs] == list(range(8))
    lags = [lag for job in service.jobs for lag in job.lags]
    assert 0 <= min(lags) and max(lags) <= max_lag


@pytest.mark.parametrize("max_lag", [0, 1, 3])
def test_rollouts_run_as_far_ahead_as_they_may_and_no_further(service, task_file, do_run, hold_jobs, max_lag):
    service.training_s, service.is_constant = 0.1, True  # enough time for rollouts to exceed the bound
    hold_jobs(ahead=max_lag, jobs=6)
    report = do_run(task_file(training={"jobs": 6, "max_policy_lag": max_lag}))
    of_batch = [max(job.lags) for job in service.jobs]
    assert of_batch == [min(batch, max_lag) for batch in range(6)]
    assert [row["policy_lag/max"] for row in report.rows] == of_batch


def test_rollouts_run_beside_training_unless_strictly_on_policy(service, task_file, do_run, hold_jobs):
    service.completion_s, service.is_constant = 0.1, True
    # Versions 1 and 2 sample batches 2 and 3 while the next job trains: completions and jobs wait for each other.
    service.holds_completion = lambda model, version: version > 0 and len(service.jobs) <= version
    hold_jobs(ahead=1, jobs=4)
    rows = do_run(task_file(training={"jobs": 4, "max_policy_lag": 1})).rows
    assert min(row["seconds/rollouts_beside_training"] for row in rows[2:]) >= 0.1


def test_strictly_on_policy_rollouts_and_training_take_turns(service, task_file, do_run):
    service.training_s = service.completion_s = 0.1
    rows = do_run(task_file(training={"jobs": 4, "max_policy_lag": 0})).rows
    assert [row["seconds/rollouts_beside_training"] for row in rows] == [0] * 4


def test_batches_are_the_task_stream_in_order_however_fast_each_group_is(service, task_file, do_run):
    service.completion_s = 0.2
    do_run(task_file(training={"jobs": 5, "max_policy_lag": 2}))
    stream = TaskStream(Numbered().tasks("train"), seed=5)
    assert [job.questions for job in service.jobs] == [
        [f"task {task}" for task in stream.batch(index, 2)] for index in range(5)
    ]


def test_a_batch_beyond_the_bound_isnt_trained(service, task_file, do_run):
    service.claimed_version = lambda version: max(0, version - 2)  # an API replica that resolves names too late
    with pytest.raises(PolicyLagError) as raised:
        do_run(task_file(training={"jobs": 8, "max_policy_lag": 1}))
    for number in ("Batch 2", "version 2", "version 0", "lag of 2", "max_policy_lag is 1"):
        assert number in str(raised.value)
    assert len(service.jobs) == 2


def test_a_choice_without_its_version_isnt_trained(service, task_file, do_run):
    with pytest.raises(PolicyLagError, match="Group 0, trajectory 0, turn 0"):
        do_run(task_file("Forgetful"))
    assert service.jobs == []
