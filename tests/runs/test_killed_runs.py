"""A run that is killed (kill -9) at random moments and started again until it is done."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripted_service import ScriptedService
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PROGRAM = Path(__file__).with_name("killed_run.py")
JOBS = 10


def start(task_file, service, directory):
    command = [sys.executable, str(PROGRAM), str(task_file), service.url, str(directory)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def rows(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def what_happened(service, directory):
    """Return all results that depend neither on time nor on the version that answered a group."""
    trained = [(job.questions, job.trained_on, job.step, len(job.trajectories)) for job in service.jobs]
    recorded = sorted((row["kind"], row["version"], row.get("batch", -1)) for row in rows(directory))
    return trained, recorded


def scalars(directory):
    """Return for each tag the steps that TensorBoard shows."""
    accumulator = EventAccumulator(str(directory / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: [event.step for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


@pytest.fixture
def task(task_file):
    return task_file(training={"jobs": JOBS, "max_policy_lag": 1}, evaluation={"every": 4})


def test_a_run_killed_at_random_moments_equals_an_undisturbed_one(task, tmp_path):
    rng = random.Random(0)
    outcomes = []
    for is_killed in (False, True):
        directory = tmp_path / f"killed-{is_killed}"
        with ScriptedService(training_s=0.15, completion_s=0.1) as service:
            num_kills = 0
            while True:
                process = start(task, service, directory)
                num_requests, num_jobs = len(service.requests), len(service.jobs)
                if is_killed:  # kill it after a random number of requests, before its third job ends
                    until, most = num_requests + rng.randrange(1, 60), num_jobs + 3
                    service.holds_job = lambda job, p=process, n=most: len(service.jobs) >= n and p.poll() is None
                    while process.poll() is None and len(service.requests) < until and len(service.jobs) < most:
                        time.sleep(0.001)
                    time.sleep(rng.uniform(0, 0.1))
                    process.kill()
                output, _ = process.communicate(timeout=400)
                if process.returncode == 0:
                    break
                assert process.returncode == -9, output
                num_kills += 1
            outcomes.append(what_happened(service, directory))
            assert not is_killed or num_kills >= 3
            lags = [lag for job in service.jobs for lag in job.lags]
            assert max(lags) <= 1
        steps = scalars(directory)
        assert steps["reward/mean"] == list(range(1, JOBS + 1))
        assert steps["eval/reward/mean"] == [0, 4, 8, 10]
        assert not list((directory / "batches").iterdir())
    assert outcomes[0] == outcomes[1]


def test_a_run_killed_right_after_its_post_trains_the_batch_once(task_file, tmp_path):
    """This is the worst moment to be killed: the answer to the POST never arrives."""
    directory = tmp_path / "run"
    with ScriptedService() as service:
        task = task_file(training={"jobs": 3, "max_policy_lag": 1})
        process = None

        def kill_at_the_post(request):
            if request.url.path.endswith("/events") and process.poll() is None and len(service.jobs) == 2:
                process.kill()
            return None

        service.intercept = kill_at_the_post
        process = start(task, service, directory)
        process.communicate(timeout=400)
        assert process.returncode == -9
        assert [row["batch"] for row in rows(directory)] == [0]
        second = start(task, service, directory)
        output, _ = second.communicate(timeout=400)
        assert second.returncode == 0, output
        assert [job.step for job in service.jobs] == [1, 2, 3]
        assert [row["batch"] for row in rows(directory)] == [0, 1, 2]
        assert [row["job"] for row in rows(directory)] == [job.id for job in service.jobs]
