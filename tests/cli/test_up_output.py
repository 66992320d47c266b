"""The output of `tandem up` in a file or a pipe, while it runs."""

import contextlib
import os
import subprocess
import sys

import pytest

# The service is replaced; the command and its output are real.
PROGRAM = """
import contextlib, sys
from tandem.cli import launch, main, watching

launch.running = lambda *_: contextlib.nullcontext()
watching.answers = lambda: True
main.app(["up"])
"""


@pytest.fixture
def up(tmp_path):
    """Start `tandem up` with its output in a file descriptor. Python buffers it until the command flushes."""
    environment = {**os.environ, "TANDEM_HOME": str(tmp_path / "home"), "RAY_AUTH_MODE": "token"}
    environment.pop("PYTHONUNBUFFERED", None)
    with contextlib.ExitStack() as exits:

        def start(stdout):
            process = subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stdout=stdout)
            exits.enter_context(process)
            exits.callback(process.kill)
            return process

        yield start


def test_the_first_key_is_in_a_pipe_while_the_service_runs(up):
    process = up(subprocess.PIPE)
    lines = iter(process.stdout.readline, b"")
    assert any(b"TANDEM_API_KEY=tdm_" in line for line in lines)
    assert any(b"Ctrl-C" in line for line in lines)
    assert process.poll() is None
