"""`tandem up` that gets SIGTERM before it is ready."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tandem.cluster.processes.held_ports import hold_port


def started_with(home):
    """Return all processes whose environment has this home directory."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TANDEM_HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("moment", ["starting Ray", "starting Ray Serve"])
def test_a_signal_during_the_start_leaves_no_process(tmp_path, moment):
    held = hold_port("127.0.0.1")
    environment = {**os.environ, "TANDEM_HOME": str(tmp_path), "TANDEM_HTTP__PORT": str(held.getsockname()[1])}
    for inherited in [name for name in environment if name.startswith("RAY_")]:  # of this test run's Ray
        del environment[inherited]
    project = tmp_path / "project"  # whose modules no process may import
    project.mkdir()
    for name in ("secrets", "types", "random", "torch", "numpy", "logging", "ray", "sitecustomize", "starlette"):
        (project / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write(__file__)\n")
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("tandem")), "up"],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output = []
        while not output or output[-1].strip() != f"Starting Tandem: {moment}":
            line = process.stdout.readline()
            assert line, "".join(output)
            output.append(line)
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=300)
        assert process.returncode != 0, rest
        assert "Traceback" not in rest, rest
        assert not (tmp_path / "imported").exists(), (tmp_path / "imported").read_text()
        deadline = time.monotonic() + 300  # Ray's own agents may take two minutes
        while started_with(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert started_with(tmp_path) == []
    finally:
        for left in started_with(tmp_path):
            with suppress(psutil.NoSuchProcess):
                left.kill()
        held.close()
