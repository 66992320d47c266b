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
from waiting import wait_until

JOBS = 6
TASK = """
name: NAME
environment: {class: my_environment.py:Words, options: {hold: HOLD}}
rollouts: {groups_per_job: 8, group_size: 4, max_tokens: 16}
training: {jobs: JOBS, experimental_config: {learning_rate: 1e-3, packed_sequence_length: 256}}
evaluation: {every: 3, tasks: 4}
"""
ENVIRONMENT = '''
"""A user's environment; only the submitted program can import it."""

import asyncio
import time
from pathlib import Path

from tandem.rl.environments.base import SingleTurnEnvironment
from word_lists import TRAIN, EVAL


class Words(SingleTurnEnvironment[str]):
    def __init__(self, hold):
        super().__init__()
        self.hold, self.left = Path(hold), 70  # 32 per job, and two batches may be open at once

    def tasks(self, split):
        return TRAIN if split == "train" else EVAL

    def messages(self, task):
        return [{"role": "user", "content": f"Say {task}."}]

    async def reward(self, task, answer):
        self.left -= 1
        if self.left < 0:
            await asyncio.to_thread(self.wait)
        return self.left % 4 + len(answer or "") / 100  # differs within a group: a run that trains nothing fails

    def wait(self):
        """Keep the run from ending before the test interrupts it. A thread can't be cancelled."""
        while self.hold.exists():
            time.sleep(0.05)
'''


@pytest.fixture(scope="module")
def hold(tmp_path_factory) -> Path:
    """Return a file; while it exists, only the first rollouts of a process end."""
    return tmp_path_factory.mktemp("hold") / "hold"


@pytest.fixture(scope="module")
def project(tmp_path_factory, hold) -> Path:
    directory = tmp_path_factory.mktemp("project")
    task = TASK.replace("HOLD", str(hold)).replace("JOBS", str(JOBS))
    for name in ("killed", "stopped", "mistaken"):
        (directory / f"{name}.yaml").write_text(task.replace("NAME", name))
    (directory / "my_environment.py").write_text(ENVIRONMENT)
    (directory / "word_lists.py").write_text('TRAIN = ["yes", "no", "12", "7"]\nEVAL = ["maybe", "9"]\n')
    return directory


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tandem-home")


@pytest.fixture(scope="module")
def head(tmp_path_factory, home):
    # By default, Ray kills a stopped job after 3 s, which a busy machine may need for stopping the service.
    settings = {"TANDEM_HOME": str(home), "RAY_JOB_STOP_WAIT_TIME_S": "30"}
    with ray_head(tmp_path_factory.mktemp("head"), **settings) as head:
        yield head


class Submitted:
    """A `ray job submit` command with its output."""

    def __init__(self, head, project: Path, log: Path, id: str, task_file: str):
        self._head, self.id, self._log = head, id, log
        command = [shutil.which("ray", path=head.env["PATH"]), "job", "submit", "--submission-id", id]
        command += ["--working-dir", str(project), "--", "tandem", "train", task_file]
        with log.open("wb") as opened:
            at_once = {**head.env, "PYTHONUNBUFFERED": "1"}  # as in a terminal
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
        """Wait until Ray reports this end of the job, which may be after the log has ended."""
        deadline = time.monotonic() + 120
        while f"Job '{self.id}' {what}" not in (said := self._status()):
            assert time.monotonic() < deadline, said
            time.sleep(1)
        return True

    def _status(self) -> str:
        """Return Ray's status text without colours."""
        return re.sub(r"\x1b\[\d+m", "", self._head.run("ray", "job", "status", self.id).stdout)


@pytest.fixture
def submit(head, project, tmp_path):
    return lambda id, run: Submitted(head, project, tmp_path / f"{id}.log", id, run.task_file)


class Run:
    """The results and processes of a run."""

    def __init__(self, home: Path, name: str):
        self._home, self.name = home, name

    @property
    def task_file(self) -> str:
        return f"{self.name}.yaml"

    def rows(self):
        path = self._home / "runs" / self.name / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def versions(self):
        return [row["version"] for row in self.rows() if row["kind"] == "training"]

    def drivers(self):
        """Return the processes of `tandem train`, without the shell that Ray starts it with."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                words = process.cmdline()
                is_driver = "train" in words and self.task_file in words
                if is_driver and process.environ().get("TANDEM_HOME") == str(self._home):
                    found.append(process)
        return found


def service_runs(head) -> bool:
    """Return True if Ray Serve has the application."""
    return re.search(r"^  tandem:$", head.run("serve", "status").stdout, re.MULTILINE) is not None


@pytest.fixture
def held(hold, submit):
    """Return a function that submits a run and holds it after its first jobs: held(id, run)."""

    def held(id: str, run: Run) -> Submitted:
        hold.touch()
        submitted = submit(id, run)
        submitted.wait_until(run.versions)
        return submitted

    return held


@pytest.fixture
def resumed(head, hold, submit):
    """Return a function that resumes a run to its end, checks that it is complete, and returns its output."""

    def resumed(id: str, run: Run) -> str:
        num_before = len(run.versions())
        assert num_before < JOBS
        hold.unlink()
        last = submit(id, run)
        assert last.wait() == 0, last.output
        assert last.ended_as("succeeded")
        assert f"after {num_before} of {JOBS} jobs" in last.output
        assert f"{JOBS} of {JOBS} jobs" in last.output
        assert run.versions() == list(range(1, JOBS + 1))
        assert [row["version"] for row in run.rows() if row["kind"] == "evaluation"] == [0, 3, JOBS]
        assert re.search(rf"version {JOBS} \(job {JOBS}/{JOBS}\) · reward", last.output)
        assert not service_runs(head)
        assert run.drivers() == []
        return last.output

    return resumed


def test_a_killed_run_is_resumed_to_its_end(head, home, held, resumed):
    run = Run(home, "killed")
    killed = held("killed", run)
    for driver in run.drivers():
        driver.kill()
    assert killed.wait(300) != 0
    assert killed.ended_as("failed")
    assert service_runs(head)  # a killed run can't stop it
    assert "started earlier" in resumed("killed-resumed", run)


@pytest.mark.slow
def test_a_stopped_run_stops_its_service_and_resumes_with_another(head, home, held, resumed):
    run = Run(home, "stopped")
    stopped = held("stopped", run)
    head.run("ray", "job", "stop", "stopped")
    stopped.wait(300)
    assert stopped.ended_as("was stopped")
    wait_until(lambda: not service_runs(head), 300)
    resumed("stopped-resumed", run)


def test_a_mistake_in_the_task_file_fails_the_job_and_is_named(home, project, submit):
    run = Run(home, "mistaken")
    task = project / run.task_file
    task.write_text(task.read_text().replace("group_size", "groupsize"))
    mistaken = submit("mistaken", run)
    assert mistaken.wait(300) != 0
    assert "rollouts.groupsize" in mistaken.output
    assert mistaken.ended_as("failed")
