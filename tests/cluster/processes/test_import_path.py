"""Modules in the directory where a command is called aren't imported by the processes that it starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

import tandem
from tandem.cluster.processes.import_path import (
    LIKE_PYTHON,
    JobConfig,
    children_import_safely,
    without_working_directory,
)
from tandem.serve.modelarts.running.user_program import UserProgram

PACKAGE = str(Path(tandem.__file__).parent.parent)
TRAP = "raise RuntimeError('imported from the working directory')"
SPAWN = """
import multiprocessing

process = multiprocessing.get_context("spawn").Process(target=print)
process.start()
process.join()
exit(process.exitcode)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with modules that hide others, and Python's own variables unset."""
    for name in ("secrets", "types", "random", "sitecustomize", "usercustomize"):
        (tmp_path / f"{name}.py").write_text(TRAP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "arguments", [["-c", "import secrets, random"], ["-m", "secrets"], ["-c", "import concurrent.futures"]]
)
@pytest.mark.parametrize("python_path", [None, "", ":", ".", "./", ":/nowhere", "/nowhere:", f"{PACKAGE}:.:/nowhere"])
def test_a_child_does_not_import_from_the_working_directory(project, monkeypatch, arguments, python_path):
    if python_path is not None:
        monkeypatch.setenv("PYTHONPATH", python_path)
    before = dict(os.environ)
    with children_import_safely():
        subprocess.run([sys.executable, *arguments], check=True)
    assert dict(os.environ) == before


def test_children_of_a_child_do_not_either(project):
    """As vLLM's core and its workers are started, by multiprocessing."""
    with children_import_safely():
        subprocess.run([sys.executable, "-c", SPAWN], check=True)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("", ""),
        (":", ""),
        (".", ""),
        ("/a:/b", "/a:/b"),
        (":/a:.:/a/./b", "/a:/a/./b"),
        ("src:/a", "src:/a"),
    ],
)
def test_only_entries_that_mean_the_working_directory_are_left_out(project, given, kept):
    assert without_working_directory(given) == kept


def test_the_directory_of_tandem_itself_is_kept(monkeypatch):
    monkeypatch.chdir(PACKAGE)
    assert without_working_directory(".:/a") == f"/a:{PACKAGE}"


def test_a_users_own_program_imports_its_neighbours(project):
    (project / "neighbour_of_this_test.py").touch()
    (project / "main.py").write_text("import neighbour_of_this_test")
    program = UserProgram(project, "main.py", (), spec=None, num_workers=1)
    for name in ("sitecustomize", "usercustomize", "types", "random"):
        (project / f"{name}.py").unlink()
    with children_import_safely():
        environment = {**os.environ, **program.environment()}
    assert environment["PYTHONSAFEPATH"] == LIKE_PYTHON["PYTHONSAFEPATH"] == ""
    subprocess.run([sys.executable, "main.py"], env=environment, check=True)


def test_rays_workers_get_no_directory_of_the_driver():
    config = JobConfig()
    config._py_driver_sys_path.extend([os.getcwd(), "/scripts"])  # as ray.init does
    config.set_ray_namespace("tandem")
    assert list(config._get_proto_job_config().py_driver_sys_path) == []
    assert isinstance(config, ray.job_config.JobConfig)
