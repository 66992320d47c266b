"""`tandem up` exits when its Ray dies, so that a supervisor can restart it."""

import signal
from pathlib import Path

import pytest
from service_process import ServiceProcess, send, title_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("part", ["raylet", "gcs_server"])
def test_it_reports_that_its_ray_died_and_exits(tmp_path, part):
    with ServiceProcess(tmp_path, {}) as service:
        service.start()
        (process,) = [p for p in service.processes() if Path(title_of(p).split(" ")[0]).name == part]
        send(process, signal.SIGKILL)
        assert service.wait() == 1, service.end_of_log()
        assert f"({part})" in service.log  # Ray itself may write much after it
