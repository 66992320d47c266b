"""Starts that fail before there is a service."""

import os

import pytest
import ray

from tandem.cli import launch
from tandem.cli.startup import StartError
from tandem.cluster.config import TandemConfig
from tandem.cluster.processes.local_ray import logs_of_start


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


@pytest.mark.parametrize("address", [None, ""])
def test_an_empty_address_of_a_cluster_is_none(monkeypatch, address):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert launch.starts_ray()
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert not launch.starts_ray()


def test_a_failed_start_names_the_logs_of_its_own_ray(tmp_path, monkeypatch):
    monkeypatch.setattr(ray._private.worker.global_worker, "node", None)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert logs_of_start() is None
    for pid in (os.getpid(), os.getpid() + 1):
        (tmp_path / "ray" / f"session_2026-01-01_00-00-00_000000_{pid}" / "logs").mkdir(parents=True)
    (tmp_path / "ray" / "session_latest").symlink_to(f"session_2026-01-01_00-00-00_000000_{os.getpid() + 1}")
    assert str(logs_of_start()).endswith(f"_{os.getpid()}/logs")
