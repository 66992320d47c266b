"""User programs: their command line and environment, the output of several workers, workers that fail."""

import os
import subprocess
import sys
import sysconfig
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from tandem.serve.modelarts.running import workers as user_workers
from tandem.serve.modelarts.running.user_program import UserProgram, python_path
from tandem.serve.modelarts.running.workers import MARK, UserWorker, demultiplex
from tandem.serve.modelarts.settings.resource_specs import ResourceSpec

SPEC = ResourceSpec(1, "tandem.cpu.1", 1, 0, "", 2)


def read_all(worker):
    lines, status = [], None
    for _ in range(60):
        more, status = worker.read()
        lines += more
        if status is not None:
            return lines, status
    raise AssertionError(f"The worker hasn't ended; it wrote {lines}.")


def test_output_and_exit_status_of_a_worker():
    worker = UserWorker()
    worker.start([sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"])
    lines, status = read_all(worker)
    assert sorted(lines) == ["err", "out"]
    assert status == 3


def test_arguments_reach_the_program_as_they_are(tmp_path):
    """All characters that the shell of Ray's entrypoint would interpret are quoted."""
    (tmp_path / "boot.py").write_text("import sys; print(sys.argv[1:])")
    arguments = ["--a=$(touch hacked)", "--b='; touch hacked; '", "--c=`id`", '--d="x y"', "--e=*", "--f=\n"]
    for num_workers in (1, 2):
        entrypoint = UserProgram(tmp_path, "boot.py", arguments, SPEC, num_workers).entrypoint("127.0.0.1:1")
        if num_workers == 2:  # the boot file replaces the workers' leader and prints its arguments
            entrypoint = entrypoint.replace("-m tandem.serve.modelarts.running.workers", "boot.py", 1)
        ran = subprocess.run(entrypoint, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert eval(ran.stdout)[-len(arguments) :] == arguments
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(("num_gpus", "visible"), [(0, ""), (2, "4,7")])
def test_a_program_sees_gpus_only_if_it_asked_for_some(tmp_path, monkeypatch, num_gpus, visible):
    """Ray sets the variable for a job that asks for GPUs, and leaves that of the node to others."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    (tmp_path / "boot.py").write_text("import os; print(os.environ['CUDA_VISIBLE_DEVICES'])")
    spec = replace(SPEC, num_gpus=num_gpus)
    entrypoint = UserProgram(tmp_path, "boot.py", [], spec, 1).entrypoint("127.0.0.1:1")
    ran = subprocess.run(entrypoint, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout == f"{visible}\n"


def test_a_program_imports_the_package_of_this_process(tmp_path):
    """The leader of the workers is a module of the package, importable from any working directory."""
    environment = UserProgram(tmp_path, "boot.py", [], SPEC, 2).environment()
    code = f"import {user_workers.__name__} as module; print(module.__file__)"
    command = [sys.executable, "-c", code]
    path = subprocess.run(
        command, cwd=tmp_path, env=_without_python_path() | environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert path == user_workers.__file__


def _without_python_path():
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_the_python_path_of_a_checkout_keeps_its_links(tmp_path):
    (tmp_path / "elsewhere" / "tandem").mkdir(parents=True)
    (tmp_path / "repository").mkdir()
    package = tmp_path / "repository" / "tandem"
    package.symlink_to(tmp_path / "elsewhere" / "tandem")
    assert python_path(str(package / "__init__.py")) == str(tmp_path / "repository")


def test_an_installed_package_needs_no_python_path():
    """In PYTHONPATH, site-packages would come before the standard library."""
    site_packages = Path(sysconfig.get_path("purelib"))
    assert python_path(str(site_packages / "tandem" / "__init__.py")) is None


def test_output_is_sorted_by_worker():
    lines = [f"{MARK}0{MARK}a", f"{MARK}1{MARK}b", "unmarked", f"{MARK}9{MARK}of no worker", f"{MARK}1{MARK}"]
    assert demultiplex(lines, 2) == {0: ["a", "unmarked", f"{MARK}9{MARK}of no worker"], 1: ["b", ""]}


@pytest.mark.parametrize(
    ("start_s", "deadline_s", "cause"),
    [
        (600, 2, "worker 0 hasn't started within 2 s"),
        (0, 300, "worker 0 can't run its program.*boot"),
    ],
)
def test_the_error_names_a_worker_that_does_not_start_and_the_cause(ray_local, monkeypatch, start_s, deadline_s, cause):
    class Unavailable:
        def rendezvous(self):
            return "tcp://127.0.0.1:1"

        def start(self, command):
            time.sleep(start_s)
            raise FileNotFoundError(f"no such file: {command[0]}")

    monkeypatch.setattr(user_workers, "START_S", deadline_s)
    workers = [ray.remote(Unavailable).options(num_cpus=0).remote() for _ in range(2)]
    ray.get([worker.rendezvous.remote() for worker in workers])  # the worker processes run
    with pytest.raises(user_workers._StartError, match=cause) as error:
        user_workers._start(workers, ["boot"])
    assert error.value.rank == 0
    for worker in workers:
        ray.kill(worker)
