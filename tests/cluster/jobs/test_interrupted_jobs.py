"""Jobs on real learners and a real store: an interruption doesn't change their result."""

import os
import shutil
import signal

import pytest
import ray
from watched_run import Run, accept_job

NUM_GROUPS = 8  # each group makes one packed sequence


@pytest.fixture(scope="module")
def accepted(tiny_model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("accepted")
    accept_job(directory, NUM_GROUPS)
    return directory


@pytest.fixture
def start(accepted, ray_local, tmp_path):
    """A function that starts a run of a copy of the accepted job. Runs share artifacts, so they can share learners."""
    runs = []

    def start(name, count, *arguments, **settings):
        (tmp_path / name).mkdir()
        (tmp_path / name / "artifacts").symlink_to(accepted / "artifacts")
        for file in accepted.glob("tandem.db*"):
            shutil.copy(file, tmp_path / name)
        runs.append(Run(tmp_path / name, {"count": count}, *arguments, **settings))
        return runs[-1]

    yield start
    for run in runs:
        run.learners.stop()


def kill_a_learner(run):
    worker = run.learners.workers[-1]
    os.kill(ray.get(worker.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)


def stop_the_service(run):
    run.coordinator.stop()


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_job_whose_learner_is_killed_or_whose_service_is_stopped_makes_the_same_version(start, count):
    undisturbed = start("undisturbed", count)
    job, expected = undisturbed.to_the_end()
    undisturbed.check_accounts(job, count)

    killed = start("killed", count, kill_a_learner, learners_of=undisturbed)
    job, digest = killed.to_the_end()
    assert (job.attempt, job.num_handed_back) == (2, 0)
    assert digest == expected
    killed.check_accounts(job, count)

    stopped = start("stopped", count, stop_the_service, learners_of=killed, stop_grace_s=0)
    stopped.coordinator.run()
    stopped.learners.stop()
    stopped.begin()
    job, digest = stopped.to_the_end()
    assert (job.attempt, job.num_handed_back) == (2, 1)
    assert digest == expected
    stopped.check_accounts(job, count)
