"""`tandem up` ends when its Ray dies under it, so that a supervisor can start it again."""

import signal
from pathlib import Path

import pytest
from service_process import ServiceProcess, send, title_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("part", ["raylet", "gcs_server"])
def test_it_says_that_its_ray_has_died_and_ends(tmp_path, part):
    with ServiceProcess(tmp_path, {}) as service:
        service.start()
        (process,) = [p for p in service.processes() if Path(title_of(p).split(" ")[0]).name == part]
        send(process, signal.SIGKILL)
        assert service.wait() == 1, service.end_of_log()
        assert f"because its Ray has: {part} died." in service.log  # Ray itself may write much after it
