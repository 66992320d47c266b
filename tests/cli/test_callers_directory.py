"""The command's own process doesn't import modules of the directory where it is called."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tandem

PACKAGE = str(Path(tandem.__file__).parent.parent)
COMMAND = Path(sys.executable).with_name("tandem")
TRAP = "raise RuntimeError('imported from the working directory')"
NAMES = ("secrets", "random", "httpx", "rich", "typer", "yaml", "pydantic", "ray", "dataclasses", "calendar", "uuid")


@pytest.fixture
def tandem_in(tmp_path):
    """Run the installed command with this source in a directory with modules that hide others."""
    project = tmp_path / "project"
    project.mkdir()
    for name in NAMES:
        (project / f"{name}.py").write_text(TRAP)
    script = shutil.copy(COMMAND, tmp_path / "tandem")

    def run(*arguments, python_path):
        environment = {**os.environ, "TANDEM_HOME": str(tmp_path / "home"), "PYTHONPATH": python_path}
        return subprocess.run(
            [sys.executable, script, *arguments], cwd=project, env=environment, capture_output=True, text=True
        )

    return run


@pytest.mark.parametrize("python_path", [f"{PACKAGE}:", f".:{PACKAGE}"])
def test_nothing_is_imported_from_an_accidental_entry_of_the_path(tandem_in, python_path):
    result = tandem_in("keys", "list", "--json", python_path=python_path)
    assert (result.returncode, result.stdout) == (0, "[]\n"), result.stderr


def test_a_runs_environment_may_be_a_module_there(tandem_in, tmp_path):
    (tmp_path / "project" / "my_environments.py").write_text(
        "from tandem.rl.environments.toy import Largest\nimport secrets\nclass Mine(Largest):\n    pass\n"
    )
    task = "name: a\nenvironment: {class: 'my_environments:Absent'}\ntraining: {jobs: 1}\n"
    (tmp_path / "project" / "task.yaml").write_text(task)
    result = tandem_in("train", "task.yaml", python_path=f"{PACKAGE}:")
    assert result.returncode == 2
    assert "Absent" in result.stderr and "Mine" in result.stderr  # the module was found
