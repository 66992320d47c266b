"""`ray job submit -- tandem train` on a fresh Ray cluster: it starts the service there, survives and resumes."""

import json
import re
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from ray_head import ray_head

JOBS = 12
TASK = """
name: submitted
environment: {class: my_environment.py:Words, options: {hold: HOLD}}
rollouts: {groups_per_job: 8, group_size: 4, max_tokens: 16}
training: {jobs: JOBS, experimental_config: {learning_rate: 1e-3, packed_sequence_length: 256}}
evaluation: {every: 6, tasks: 4}
"""
ENVIRONMENT = '''
"""A user's own environment; only the program that was submitted can import it."""

import asyncio
import time
from pathlib import Path

from tandem.rl.environments.base import SingleTurnEnvironment
from word_lists import TRAIN, EVAL


class Words(SingleTurnEnvironment[str]):
    def __init__(self, hold):
        super().__init__()
        self.hold = Path(hold)

    def tasks(self, split):
        return TRAIN if split == "train" else EVAL

    def messages(self, task):
        return [{"role": "user", "content": f"Say {task}."}]

    async def reward(self, task, answer):
        await asyncio.to_thread(self.wait)
        return float(task in (answer or "")) + len(answer or "") / 100

    def wait(self):
        """So that the run isn't over before the test has done something to it. Nobody can cancel a thread."""
        while self.hold.exists():
            time.sleep(0.05)
'''


@pytest.fixture(scope="module")
def hold(tmp_path_factory) -> Path:
    """While there is this file, no rollout ends."""
    return tmp_path_factory.mktemp("hold") / "hold"


@pytest.fixture(scope="module")
def task(hold) -> str:
    return TASK.replace("HOLD", str(hold)).replace("JOBS", str(JOBS))


@pytest.fixture(scope="module")
def project(tmp_path_factory, task) -> Path:
    directory = tmp_path_factory.mktemp("project")
    (directory / "task.yaml").write_text(task)
    (directory / "my_environment.py").write_text(ENVIRONMENT)
    (directory / "word_lists.py").write_text('TRAIN = ["yes", "no", "12", "7"]\nEVAL = ["maybe", "9"]\n')
    return directory


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tandem-home")


@pytest.fixture(scope="module")
def head(tmp_path_factory, home):
    # Ray kills a stopped job after 3 s by itself. A run needs a part of that to ask for the service's end, but a busy
    # machine may stand still for longer.
    settings = {"TANDEM_HOME": str(home), "RAY_JOB_STOP_WAIT_TIME_S": "30"}
    with ray_head(tmp_path_factory.mktemp("head"), **settings) as head:
        yield head


class Submitted:
    """`ray job submit`, as it runs in a terminal."""

    def __init__(self, head, project: Path, log: Path, id: str):
        self._head, self.id, self._log = head, id, log
        command = [shutil.which("ray", path=head.env["PATH"]), "job", "submit", "--submission-id", id]
        command += ["--working-dir", str(project), "--", "tandem", "train", "task.yaml"]
        with log.open("wb") as opened:
            at_once = {**head.env, "PYTHONUNBUFFERED": "1"}  # as in a terminal, which a file isn't
            self._process = subprocess.Popen(command, env=at_once, stdout=opened, stderr=subprocess.STDOUT)

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait(self, timeout_s: float = 900) -> int:
        return self._process.wait(timeout_s)

    def wait_until(self, condition, timeout_s: float = 900) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self._process.poll() is None and time.monotonic() < deadline, self.output
            time.sleep(0.1)

    def ended_as(self, what: str) -> bool:
        """What Ray says of the job in the end; it may say so after the log has ended."""
        deadline = time.monotonic() + 120
        while f"Job '{self.id}' {what}" not in (said := self._status()):
            assert time.monotonic() < deadline, said
            time.sleep(1)
        return True

    def _status(self) -> str:
        """In Ray's words, without their colours."""
        return re.sub(r"\x1b\[\d+m", "", self._head.run("ray", "job", "status", self.id).stdout)


@pytest.fixture
def submit(head, project, tmp_path):
    return lambda id: Submitted(head, project, tmp_path / f"{id}.log", id)


def rows(home):
    path = home / "runs" / "submitted" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def versions(home):
    return [row["version"] for row in rows(home) if row["kind"] == "training"]


def drivers(home):
    """Processes of `tandem train`, but for the shell that Ray starts it with."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            if "train" in words and "task.yaml" in words and process.environ().get("TANDEM_HOME") == str(home):
                found.append(process)
    return found


def service_runs(head) -> bool:
    """Whether Ray Serve has the application."""
    return re.search(r"^  tandem:$", head.run("serve", "status").stdout, re.MULTILINE) is not None


def test_a_submitted_run_is_killed_resumed_stopped_and_resumed(head, home, hold, submit):
    killed = submit("killed")
    killed.wait_until(lambda: versions(home))
    hold.touch()
    for driver in drivers(home):
        driver.kill()
    assert killed.wait(300) != 0
    assert killed.ended_as("failed")
    assert service_runs(head)  # nobody was there to end it

    stopped = submit("stopped")
    num_before = len(versions(home))
    hold.unlink()
    stopped.wait_until(lambda: len(versions(home)) > num_before)
    hold.touch()
    assert len(versions(home)) < JOBS
    stopped.wait_until(lambda: f"version {num_before + 1} (job" in stopped.output)  # what Ray shows comes later
    assert f"Going on after {num_before} of {JOBS} jobs" in stopped.output
    assert "using the service that this run has started before" in stopped.output
    head.run("ray", "job", "stop", "stopped")
    stopped.wait(300)
    assert stopped.ended_as("was stopped")
    deadline = time.monotonic() + 300
    while service_runs(head):
        assert time.monotonic() < deadline, head.run("serve", "status").stdout
        time.sleep(1)
    assert len(versions(home)) < JOBS

    hold.unlink()
    last = submit("last")
    assert last.wait() == 0, last.output
    assert last.ended_as("succeeded")
    assert f"{JOBS} of {JOBS} jobs are trained" in last.output
    assert versions(home) == list(range(1, JOBS + 1))
    assert [row["version"] for row in rows(home) if row["kind"] == "evaluation"] == [0, 6, JOBS]
    assert re.search(rf"version {JOBS} \(job {JOBS}/{JOBS}\) · reward", last.output)
    assert not service_runs(head)
    assert drivers(home) == []


def test_a_mistake_in_the_task_ends_the_job_with_a_sentence(head, project, task, submit):
    (project / "task.yaml").write_text(task.replace("group_size", "groupsize"))
    try:
        mistaken = submit("mistaken")
        assert mistaken.wait(300) != 0
        assert "rollouts.groupsize: there is no such field" in mistaken.output
        assert mistaken.ended_as("failed")
    finally:
        (project / "task.yaml").write_text(task)
