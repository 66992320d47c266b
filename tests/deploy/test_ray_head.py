"""The cluster that tests of deployment run on: made by `ray start --head`, reached by its token, ended completely."""

import os
import subprocess

import psutil
import pytest
from ray_head import MARK, own_processes, ray_head


def processes_of(head):
    return own_processes(-1, head.env[MARK])


def test_a_job_runs_on_it_and_nothing_outlives_it(tmp_path):
    with pytest.raises(ZeroDivisionError), ray_head(tmp_path) as head:
        submitted = head.run("ray", "job", "submit", "--", "echo", "the job", "says so")
        assert submitted.returncode == 0 and "the job says so" in submitted.stdout, submitted.stdout
        without_token = {k: v for k, v in head.env.items() if not k.startswith("RAY_AUTH")}
        without_token |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}
        refused = head.run("ray", "job", "list", env=without_token)
        assert refused.returncode != 0 and "auth" in refused.stdout.lower(), refused.stdout
        # A program that leaves the head's session and outlives its parent, as those of Ray jobs do when it is killed.
        away = head.run("ray", "job", "submit", "--no-wait", "--", "setsid", "sleep", "1000")
        assert away.returncode == 0, away.stdout
        own = subprocess.Popen(["sleep", "1000"])  # of nobody's
        names = {process.name() for process in processes_of(head)}
        assert "gcs_server" in names and "raylet" in names
        raise ZeroDivisionError("a test that fails")
    assert processes_of(head) == []
    assert own.poll() is None
    own.kill()
    own.wait()
    assert not [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]
    assert (tmp_path / "ray-logs" / "raylet.out").is_file()
    assert "RAY_ADDRESS" not in os.environ or os.environ["RAY_ADDRESS"] != head.address
