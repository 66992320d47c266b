"""Boot files as real Ray jobs: one worker and two, logs, each way to end, and a replaced runner."""

import json
import os
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from waiting import wait_until

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import ProjectConfig, TandemConfig
from tandem.serve.modelarts.running import supervision
from tandem.serve.modelarts.running.runner import JobRunner
from tandem.serve.modelarts.running.supervision import Supervision
from tandem.serve.modelarts.store.status import UserJobStatus
from tandem.serve.modelarts.store.store import ModelArtsStore
from tandem.serve.store.store import Store

END_S = 300  # usually a few seconds, longer on a busy machine
SETTINGS = {
    "worker_server_num": 1,
    "spec_id": 500,
    "app_url": "/bucket/code/",
    "boot_file_url": "/bucket/code/boot.py",
    "data_url": "/bucket/data/",
    "train_url": "/bucket/out/",
    "log_url": "/bucket/logs/",
}


class Project:
    """A project with a bucket, jobs, and job runners."""

    def __init__(self, home):
        self.config = TandemConfig(
            home=home,
            projects={"team": ProjectConfig(run_code=True)},
            resource_specs=[{"spec_id": 500, "spec_code": "small", "num_cpus": 0.5, "max_num": 4}],
        )
        self.service_store = Store(self.config.resolved_store_url)
        self.store = ModelArtsStore(self.service_store.database)
        self.bucket = home / "projects" / "team" / "bucket"
        (self.bucket / "data").mkdir(parents=True)
        self.code("print('hello')")

    def code(self, text):
        (self.bucket / "code").mkdir(exist_ok=True)
        (self.bucket / "code" / "boot.py").write_text(text)

    @contextmanager
    def runner(self):
        stop = threading.Event()
        artifacts = Artifacts(self.config.artifacts_root)
        runner = JobRunner(self.config, self.store, self.service_store, artifacts)
        thread = threading.Thread(target=runner.run, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(END_S)

    def start(self, name="job", **settings):
        return self.store.jobs.add("team", name, "", {**SETTINGS, **settings}, 100)

    def version(self, version):
        return self.store.jobs.version("team", version.job_id, version.id)

    def wait(self, version, until=lambda v: UserJobStatus(v.status).has_ended):
        deadline = time.monotonic() + END_S
        while time.monotonic() < deadline:
            if until(found := self.version(version)):
                return found
            time.sleep(0.2)
        raise AssertionError(f"{UserJobStatus(found.status).name}: {found.error}; log {self.log(version)}")

    def log(self, version, rank=0):
        return self.store.logs.read(version.id, f"worker-{rank}.log", 1, 1000)

    def pid(self, version, rank=0):
        """Return the process id that a program has printed, or None. The log also has lines of Ray."""
        return next((int(line.split()[1]) for line in self.log(version, rank) if line.startswith("pid")), None)


@pytest.fixture
def project(ray_local, tmp_path):
    project = Project(tmp_path)
    yield project
    project.service_store.close()


def test_a_boot_file_gets_its_arguments_and_writes_its_results(project):
    project.code(
        "import sys, json, os, helper\n"
        "args = dict(a.lstrip('-').split('=', 1) for a in sys.argv[1:])\n"
        "print(helper.WORD)\n"
        "json.dump([sys.argv[1:], os.getcwd()], open(args['train_url'] + '/args.json', 'w'))\n"
        "print('to stderr', file=sys.stderr)\n"
    )
    (project.bucket / "code" / "helper.py").write_text("WORD = 'from another file'")
    parameters = [
        {"label": "learning_rate", "value": "0.01"},
        {"label": "text", "value": "a b; $(touch hacked) 'c' \"d\""},
        {"label": "num_gpus", "value": "8"},
        {"label": "data_url", "value": "/etc"},
    ]
    with project.runner():
        version = project.wait(project.start(parameter=parameters))
    assert (version.status, version.error) == (UserJobStatus.COMPLETED, None)
    arguments, directory = json.loads((project.bucket / "out" / "args.json").read_text())
    assert arguments == [
        f"--data_url={project.bucket}/data",
        f"--train_url={project.bucket}/out",
        "--num_gpus=0",
        "--learning_rate=0.01",
        "--text=a b; $(touch hacked) 'c' \"d\"",
    ]
    assert "working_dir" in directory, "the program must run in a copy of its code"
    log = project.log(version)
    assert "from another file" in log
    assert "to stderr" in log
    assert (project.bucket / "logs" / "worker-0.log").read_text().splitlines() == log
    assert version.started_at <= version.ended_at


def test_a_failed_program_has_its_traceback_in_the_log(project):
    project.code("raise ValueError('the user must see this')")
    with project.runner():
        version = project.wait(project.start())
    assert version.status == UserJobStatus.FAILED
    assert "exit" in version.error.lower() or "code 1" in version.error
    assert "ValueError: the user must see this" in project.log(version)


def test_a_killed_worker_fails_the_job_and_stops_the_other_worker(project):
    project.code(
        "import os, sys, time\n"
        "rank = [a for a in sys.argv if a.startswith('--rank=')][0]\n"
        "print('pid', os.getpid(), rank)\n"
        "time.sleep(600)\n"
    )
    with project.runner():
        job = project.start(worker_server_num=2)
        project.wait(job, lambda _: project.pid(job) and project.pid(job, 1))
        pids = [project.pid(job, rank) for rank in range(2)]
        os.kill(pids[1], signal.SIGKILL)
        version = project.wait(job)
    assert version.status == UserJobStatus.FAILED
    assert any("worker 1 was killed by signal 9" in line for line in project.log(job, 1))
    assert f"pid {pids[0]} --rank=0" in project.log(job)
    wait_until_gone(pids[0])


def wait_until_gone(pid):
    def is_gone():
        try:
            return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):  # ProcessLookupError if it ends during the read
            return True

    wait_until(is_gone)


def test_a_stop_ends_the_program(project):
    project.code("import os, time\nprint('pid', os.getpid(), flush=True)\ntime.sleep(600)")
    with project.runner():
        job = project.start()
        project.wait(job, lambda _: project.pid(job))
        pid = project.pid(job)
        assert project.store.jobs.stop("team", job.job_id, job.id)
        version = project.wait(job)
    assert version.status == UserJobStatus.KILLED
    assert "user" in version.error
    wait_until_gone(pid)


def test_a_job_continues_while_its_runner_is_replaced(project):
    """The log has each line once, and the program isn't started again."""
    may_end = project.bucket / "may_end"
    project.code(
        "import os, time\n"
        "open('/dev/stdout', 'w')\n"
        "for n in range(40):\n"
        "    print('line', n, os.getpid(), flush=True)\n"
        "    time.sleep(0.1)\n"
        f"    while n == 9 and not os.path.exists({str(may_end)!r}):\n"  # waits for the second runner
        "        time.sleep(0.1)\n"
    )
    job = project.start()
    with project.runner():
        project.wait(job, lambda _: any(line.startswith("line 3 ") for line in project.log(job)))
    assert UserJobStatus(project.version(job).status) is UserJobStatus.RUNNING
    may_end.touch()
    with project.runner():
        version = project.wait(job)
    assert (version.status, version.num_submissions) == (UserJobStatus.COMPLETED, 1)
    lines = [line.split() for line in project.log(job) if line.startswith("line")]
    assert [int(n) for _, n, _ in lines] == list(range(40))
    assert len({pid for *_, pid in lines}) == 1


def test_a_job_whose_ray_job_is_lost_is_restarted(project):
    project.code("print('ran')")
    job = project.start()
    claimed = project.store.claims.claim("a runner that died", 3)
    project.store.claims.count_submission(claimed)  # then the runner died, or the cluster lost the job
    with project.runner():
        version = project.wait(job)
    assert (version.status, version.num_submissions) == (UserJobStatus.COMPLETED, 2)
    log = project.log(job)
    assert "submission 2" in log[0]
    assert "ran" in log  # not always first: Ray logs lines of its own


def test_a_job_stopped_before_its_submission_is_never_submitted(project):
    project.code("print('ran')")
    job = project.start()
    project.store.claims.claim("a runner that died", 0.1)
    assert project.store.jobs.stop("team", job.job_id, job.id)
    assert UserJobStatus(project.version(job).status) is UserJobStatus.KILLING
    with project.runner():
        version = project.wait(job)
    assert (version.status, version.num_submissions) == (UserJobStatus.KILLED, 0)
    assert project.log(job) == []


def test_a_log_is_cut_at_the_same_line_when_its_runner_is_replaced(project, monkeypatch):
    monkeypatch.setattr(supervision, "MAX_LOG_LINES", 5)
    job = project.start()
    stop = threading.Event()
    for lines in (["1", "2", "3"], ["4", "5", "6"], ["7"]):
        claimed = project.store.claims.claim("runner", 30)
        with Supervision(project.store, claimed, 30, stop) as care:
            care.log("worker-0.log", lines)
            care.flush()
        project.store.claims.release(claimed)
    log = project.log(job)
    assert log[:5] == ["1", "2", "3", "4", "5"]
    assert len(log) == 6, "five lines and the note that the log was cut"


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"app_url": "/bucket/none/", "boot_file_url": "/bucket/none/b.py"}, "app_url"),
        ({"boot_file_url": "/bucket/code/none.py"}, "boot_file_url"),
        ({"data_url": "/bucket/nothing/"}, "data_url"),
        ({"spec_id": 77}, "spec_id"),
    ],
)
def test_the_error_names_what_is_missing(project, settings, place):
    with project.runner():
        version = project.wait(project.start(**settings))
    assert version.status == UserJobStatus.SUBMIT_FAILED
    assert place in version.error


def test_a_waiting_job_reports_what_it_waits_for(project):
    project.config = project.config.model_copy(
        update={
            "resource_specs": (
                project.config.resource_specs[0].model_copy(update={"num_cpus": ray.cluster_resources()["CPU"] + 1}),
            )
        }
    )
    with project.runner():
        job = project.start()
        version = project.wait(job, lambda v: v.status == UserJobStatus.WAITING and v.error)
        assert "resources" in version.error
        project.store.jobs.stop("team", job.job_id, job.id)
        assert project.wait(job).status == UserJobStatus.KILLED
