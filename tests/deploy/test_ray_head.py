"""The test cluster of `ray start --head` requires its token and leaves no process behind."""

import os
import subprocess
import time
from contextlib import suppress

import psutil
import pytest
from ray_head import MARK, own_processes, ray_head

START_S = 300  # for a job that takes seconds


def processes_of(head):
    return own_processes(-1, head.env[MARK])


def names_of(head):
    found = set()
    for process in processes_of(head):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            found.add(process.name())
    return found


def zombies():
    """Return ended children of this process that it hasn't waited for."""
    found = set()
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE:
                found.add(child)
    return found


@pytest.mark.slow
def test_a_job_runs_on_it_and_nothing_outlives_it(tmp_path):
    zombies_before = zombies()  # of other tests
    with pytest.raises(ZeroDivisionError), ray_head(tmp_path) as head:
        submitted = head.run("ray", "job", "submit", "--", "echo", "the job", "says so")
        assert submitted.returncode == 0 and "the job says so" in submitted.stdout, submitted.stdout
        without_token = {k: v for k, v in head.env.items() if not k.startswith("RAY_AUTH")}
        without_token |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}
        refused = head.run("ray", "job", "list", env=without_token)
        assert refused.returncode != 0 and "auth" in refused.stdout.lower(), refused.stdout
        # A program that leaves the head's session and outlives its parent, like Ray jobs whose parent is killed.
        away = head.run("ray", "job", "submit", "--no-wait", "--", "setsid", "sleep", "1000")
        assert away.returncode == 0, away.stdout
        deadline = time.monotonic() + START_S
        while "sleep" not in names_of(head):
            assert time.monotonic() < deadline, names_of(head)
            time.sleep(0.2)
        own = subprocess.Popen(["sleep", "1000"])  # not part of the cluster
        assert {"gcs_server", "raylet"} <= names_of(head)
        raise ZeroDivisionError("a test that fails")
    assert processes_of(head) == []
    assert own.poll() is None
    own.kill()
    own.wait()
    assert zombies() <= zombies_before
    assert (tmp_path / "ray-logs" / "raylet.out").is_file()
    assert "RAY_ADDRESS" not in os.environ or os.environ["RAY_ADDRESS"] != head.address
