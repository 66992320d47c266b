"""Changes of a task file after the start of its run."""

import pytest

from tandem.runs.errors import TaskFileError


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 6},
        {"environment": "TwoTurns"},
        {"options": {"num": 20}},
        {"model": {"base_model": "other"}},
        {"rollouts": {"groups_per_job": 3}},
        {"name": "other"},
    ],
    ids=lambda changed: "-".join(changed),
)
def test_changes_that_would_make_it_another_run_are_rejected(service, task_file, do_run, changed):
    do_run(task_file(training={"jobs": 1}))
    with pytest.raises(TaskFileError, match=r"\n  \S+: .* → .*\n") as raised:
        do_run(task_file(**({"training": {"jobs": 2}} | changed)))
    assert "training.jobs" not in str(raised.value)
    assert len(service.jobs) == 1


def test_other_changes_are_reported_and_apply_from_the_next_job(service, task_file, do_run):
    do_run(task_file(training={"jobs": 2}))
    changes = {"jobs": 4, "experimental_config": {"learning_rate": 1e-4}}
    report = do_run(task_file(training=changes, rollouts={"group_size": 3}))
    reported = "".join(report.said)
    for change in ("group_size: 2 → 3", "jobs: 2 → 4", "learning_rate: unset → 0.0001"):
        assert change in reported
    assert [len(job.trajectories) for job in service.jobs] == [4, 4, 6, 6]
    assert [job.body["experimental_config"] for job in service.jobs] == [{}, {}] + [{"learning_rate": 1e-4}] * 2


def test_fewer_jobs_than_are_trained_are_rejected(service, task_file, do_run):
    do_run(task_file(training={"jobs": 3}))
    with pytest.raises(TaskFileError, match=r"training\.jobs is 2"):
        do_run(task_file(training={"jobs": 2}))


def test_a_tighter_bound_applies_to_batches_that_wait(service, task_file, do_run, hold_jobs, tmp_path):
    service.fail_jobs = 1
    hold_jobs(ahead=3, jobs=5)
    with pytest.raises(Exception, match="ran out of memory"):  # version 0 has sampled batches 1 to 3 by then
        do_run(task_file(training={"jobs": 5, "max_policy_lag": 3}))
    assert len(list((tmp_path / "run" / "batches").glob("*.groups.json.zst"))) == 4
    hold_jobs(ahead=1, jobs=5)
    do_run(task_file(training={"jobs": 5, "max_policy_lag": 1}))
    assert [max(job.lags) for job in service.jobs[1:]] == [0, 1, 1, 1, 1]


def test_evaluation_may_be_added_later(service, task_file, do_run):
    do_run(task_file(training={"jobs": 2}))
    report = do_run(task_file(training={"jobs": 2}, evaluation={"every": 1}))
    assert [(row["kind"], row["version"]) for row in report.rows] == [("evaluation", v) for v in (0, 1, 2)]
