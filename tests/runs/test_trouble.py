"""A service that fails for a while or permanently, or rejects requests: how a run reacts."""

import threading
import time

import pytest
from scripted_service import plain_not_found, unavailable

from tandem.client import Retries
from tandem.runs.errors import (
    ForeignVersionError,
    JobFailedError,
    RequestRefusedError,
    RolloutsFailedError,
    ServiceAwayError,
)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(Retries, "FIRST_PAUSE_S", 0.05)


def first(times, answer, path="", method=""):
    """Give this answer to the first requests of a path; later ones reach the service."""
    left = [times]

    def intercept(request):
        if request.url.path.endswith(path) and (not method or request.method == method) and left[0] > 0:
            left[0] -= 1
            return answer
        return None

    return intercept


TROUBLE = {
    "engine replaced": lambda: first(5, unavailable(), "/chat/completions"),
    "connection reset": lambda: first(4, "reset", "/chat/completions"),
    "reset while a job is posted": lambda: first(2, "reset", "/training-jobs", "POST"),
    "full queue": lambda: first(2, unavailable(0.2, 429), "/training-jobs", "POST"),
    "proxy without routes": lambda: first(3, plain_not_found(), "/models", "POST"),
    "all of it": lambda: first(4, unavailable(status=500)),
}


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE)
def test_passing_trouble_is_outlasted_and_reported(service, task_file, do_run, trouble):
    service.intercept = trouble()
    report = do_run(task_file(training={"jobs": 2}))
    assert [job.step for job in service.jobs] == [1, 2]
    assert all(len(job.trajectories) == 4 for job in service.jobs)
    said = [sentence for sentence in report.said if "/versions" not in sentence]  # they never end
    began = [sentence for sentence in said if "retrying" in sentence]
    ended = [sentence for sentence in said if "again" in sentence]
    assert began and len(began) == len(ended)
    assert sum(row["rollouts/failed"] for row in report.rows) == 0


def test_retry_after_is_respected(service, task_file, do_run):
    service.intercept = first(1, unavailable(1.5, 429), "/training-jobs", "POST")
    do_run(task_file(training={"jobs": 1}))
    posts = [at for at, method, path in service.requests if method == "POST" and path.endswith("/training-jobs")]
    assert len(posts) == 2 and posts[1] - posts[0] >= 1.5


def test_a_restart_in_the_middle_is_outlasted(service, task_file, do_run):
    is_back = threading.Event()
    service.holds_job = lambda job: len(service.jobs) == 2 and not is_back.is_set()

    def restart():
        while len(service.jobs) < 2:
            time.sleep(0.01)
        service.stop()
        time.sleep(1)
        service.start()
        is_back.set()

    thread = threading.Thread(target=restart, daemon=True)
    thread.start()
    do_run(task_file(training={"jobs": 4}))
    thread.join()
    assert [row for row in (job.step for job in service.jobs) if row] == [1, 2, 3, 4]


@pytest.mark.parametrize("path", ["/chat/completions", "/training-jobs", "/versions"])
def test_lasting_trouble_ends_the_run_with_its_cause(service, task_file, do_run, path):
    service.holds_job = lambda job: True
    service.intercept = first(10**9, unavailable(), path)
    with pytest.raises(ServiceAwayError) as raised:
        do_run(task_file(service={"patience_s": 1}))
    sentence = str(raised.value)
    assert service.url in sentence and "attempts" in sentence
    assert "503: The engine is being replaced." in sentence


def test_an_address_that_never_answers_is_reported_soon(service, task_file, do_run):
    service.stop()
    began = time.monotonic()
    with pytest.raises(ServiceAwayError, match="address"):
        do_run(task_file(service={"patience_s": 2}))
    assert time.monotonic() - began < 60


def test_a_failed_job_ends_the_run_and_the_next_run_posts_the_batch_again(service, task_file, do_run):
    service.fail_jobs = 1
    path = task_file(training={"jobs": 3, "max_policy_lag": 0})
    with pytest.raises(JobFailedError) as raised:
        do_run(path)
    for part in (service.jobs[0].id, "batch 0", "Stage train: the learner ran out of memory. Use fewer tokens."):
        assert part in str(raised.value)
    do_run(task_file(training={"jobs": 3, "max_policy_lag": 0, "experimental_config": {"packed_sequence_length": 64}}))
    failed, *others = service.jobs
    assert [job.step for job in others] == [1, 2, 3] and failed.step is None
    assert others[0].body["trajectory_groups"] == failed.body["trajectory_groups"]
    assert others[0].key != failed.key
    assert [job.body["experimental_config"] for job in service.jobs] == [{}] + [{"packed_sequence_length": 64}] * 3


def test_a_rejection_is_raised_at_once(service, task_file, do_run):
    service.intercept = first(1, unavailable(status=401), "/models")
    with pytest.raises(RequestRefusedError, match=r"POST .*/v1/preview/models .*\(401\)"):
        do_run(task_file())


def test_failing_rollouts_are_counted_by_cause_and_left_out(service, task_file, do_run):
    path = task_file("Failing", {"tasks": [3]}, rollouts={"max_failed_fraction": 0.5}, training={"jobs": 5})
    rows = do_run(path).rows
    assert sum(row.get("rollouts/failed/ZeroDivisionError", 0) for row in rows) == 2  # one group of two
    assert sum(len(job.trajectories) for job in service.jobs) == 5 * 4 - 2


def test_a_group_that_fails_once_is_rolled_out_again(service, task_file, do_run):
    report = do_run(task_file("Failing", {"tasks": [3], "times": 2}, training={"jobs": 5}))
    assert [len(job.trajectories) for job in service.jobs] == [4] * 5
    [said] = report.said
    assert "2 × ZeroDivisionError: task 3 divides by zero" in said


def test_too_many_failures_end_the_run_with_their_cause(service, task_file, do_run):
    with pytest.raises(RolloutsFailedError, match="2 × ZeroDivisionError: task 3 divides by zero"):
        do_run(task_file("Failing", {"tasks": [3]}, training={"jobs": 5}))


def test_rollouts_past_their_deadline_fail(service, task_file, do_run):
    path = task_file("Failing", {"tasks": [*range(10)], "slow": True}, rollouts={"timeout_s": 0.2})
    with pytest.raises(RolloutsFailedError, match="TimeoutError"):
        do_run(path)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("nan metric", None),
        ("numpy", None),
        ("surrogate", "ResultError"),
        ("exit", "SystemExit"),
        ("interrupt", "KeyboardInterrupt"),
        ("nothing", "ResultError"),
    ],
)
def test_a_bad_value_of_an_environment_doesnt_end_the_run(service, task_file, do_run, fault, cause):
    path = task_file(
        "Faulty", {"fault": fault}, rollouts={"max_failed_fraction": 0.9, "groups_per_job": 4}, evaluation={"every": 5}
    )
    report = do_run(path)
    trained = [row for row in report.rows if row["kind"] == "training"]
    assert len(trained) == 4
    if cause:
        assert sum(row.get(f"rollouts/failed/{cause}", 0) for row in trained) > 0
        assert any(cause in said and "counting_environment.py:Faulty" in said for said in report.said)
    else:
        assert all(row["rollouts/failed"] == 0 for row in trained)
    if fault == "nan metric":
        assert sum(row.get("rollouts/metric_left_out/accuracy", 0) for row in trained) > 0
        assert [said for said in report.said if "accuracy" in said]


def test_a_model_that_another_program_trains_is_noticed(service, task_file, do_run):
    def train_elsewhere(job):
        if service.step == 2:
            service.step += 1
        return False

    service.holds_job = train_elsewhere
    with pytest.raises(ForeignVersionError, match="version 4"):
        do_run(task_file(training={"jobs": 5, "max_policy_lag": 0}))


def test_a_new_run_trains_a_trained_model_only_with_go_on(service, task_file, do_run):
    service.step = 7
    with pytest.raises(ForeignVersionError, match=r"7 versions.*model\.go_on"):
        do_run(task_file())
    rows = do_run(task_file(model={"go_on": True}, training={"jobs": 2, "max_policy_lag": 0})).rows
    assert [row["version"] for row in rows] == [8, 9]


def test_what_a_job_does_not_train_is_said_and_recorded(service, task_file, do_run):
    service.warnings = [
        {"kind": "nothing_trained", "message": "Nothing was trained.", "counts": {"equal_rewards": 3, "empty": 1}},
        {"kind": "ignored_fields", "message": "Fields were ignored.", "counts": {"trajectory.run": 4}},
    ]
    report = do_run(task_file(training={"jobs": 2}))
    of_job = [sentence for sentence in report.said if sentence.startswith("Batch ")]
    # A run says each time that nothing was trained, and anything else once.
    assert of_job == ["Batch 0: Nothing was trained.", "Batch 0: Fields were ignored.", "Batch 1: Nothing was trained."]
    for row in (row for row in report.rows if row["kind"] == "training"):
        assert (row["trained/trajectories"], row["not_trained/equal_rewards"], row["not_trained/empty"]) == (4, 3, 1)
