"""`tandem train` as a process: its output, its exit status, its directory."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

TANDEM = Path(sys.executable).with_name("tandem")


@pytest.fixture
def start(service, tmp_path):
    def start(task_file, **changes):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TANDEM_"))}
        environment |= {"TANDEM_URL": service.url, "TANDEM_API_KEY": "tdm_test", "TANDEM_HOME": str(tmp_path / "home")}
        working_dir = tmp_path / "elsewhere"
        working_dir.mkdir(exist_ok=True)
        return subprocess.Popen(
            [TANDEM, "train", str(task_file)],
            env=environment | changes,
            cwd=working_dir,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def ended(process):
    output, _ = process.communicate(timeout=400)
    return process.returncode, output


def test_a_run_is_stopped_by_a_signal_and_resumes(service, start, task_file, tmp_path):
    is_stopped = threading.Event()
    service.holds_job = lambda job: len(service.jobs) > 2 and not is_stopped.is_set()
    path = task_file(training={"jobs": 5}, evaluation={"every": 5})
    process = start(path)
    while service.step < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    status, output = ended(process)
    is_stopped.set()
    assert status == 128 + signal.SIGTERM, output
    assert "of 5 jobs" in output and "resume" in output
    assert "Traceback" not in output
    run = tmp_path / "home" / "runs" / "test"  # not in the working directory
    assert (run / "reward.png").exists()

    status, output = ended(start(path))
    assert status == 0, output
    assert "Resuming after" in output and "version 5 (job 5/5)" in output
    assert "5 of 5 jobs" in output and "resume" not in output
    assert [job.step for job in service.jobs] == [1, 2, 3, 4, 5]
    assert not list((tmp_path / "elsewhere").iterdir())

    status, output = ended(start(path))
    assert status == 0 and "5 jobs" in output


def test_a_run_stops_although_rollouts_block_threads_and_ignore_cancellation(service, start, task_file, tmp_path):
    process = start(task_file(environment="Stubborn", options={"begun": str(tmp_path / "begun")}))
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    status, output = ended(process)
    assert status == 128 + signal.SIGTERM, output
    assert "0 of 4 jobs" in output and "Traceback" not in output and "destroyed" not in output


def test_a_run_that_trained_nothing_says_so_and_fails(service, start, task_file):
    service.trains_nothing = lambda job: True
    path = task_file(training={"jobs": 2})
    for _ in range(2):  # the second time, all is done
        status, output = ended(start(path))
        assert status == 1 and "Nothing was trained" in output and "none of the 2 jobs" in output, output
    assert len(service.jobs) == 2


def test_a_run_of_which_a_job_trained_nothing_says_which(service, start, task_file):
    service.trains_nothing = lambda job: service.jobs.index(job) == 1
    status, output = ended(start(task_file(training={"jobs": 3, "max_policy_lag": 0})))
    assert status == 0 and "1 of the 3 jobs trained nothing (jobs 2)" in output
    assert "4 have equal rewards" in output  # the job's warning


def test_a_failed_job_gives_status_1_and_its_cause(service, start, task_file):
    service.fail_jobs = 1
    status, output = ended(start(task_file(training={"jobs": 2, "max_policy_lag": 0})))
    assert status == 1
    assert "the learner ran out of memory" in output
    assert "Traceback" not in output


def test_mistakes_give_status_2_and_touch_nothing(service, start, task_file):
    status, output = ended(start(task_file(rollouts={"group": 1})))
    assert status == 2 and "rollouts.group" in output
    status, output = ended(start(task_file(), TANDEM_API_KEY=""))
    assert status == 2 and "TANDEM_API_KEY" in output
    status, output = ended(start(task_file(service={"config": "missing.yaml"}), TANDEM_URL=""))
    assert status == 2 and "missing.yaml" in output
    assert service.requests == []
