"""Starts that fail before there is a service."""

import pytest
import ray

from tandem.cli import launch
from tandem.cli.startup import StartError
from tandem.cluster.config import TandemConfig


def test_a_ray_that_does_not_start_is_a_start_error(tmp_path, monkeypatch):
    def init(**options):
        raise Exception("The current node timed out during startup.")  # as Ray raises it

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(StartError, match="timed out"):
        with launch.connected(TandemConfig(home=tmp_path), False, lambda _: None):
            pytest.fail("it isn't connected")
