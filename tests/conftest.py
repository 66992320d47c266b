"""Options, lanes and fixtures for all tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lanes import LANES, check_lane, group_of, is_left_out
from xdist.scheduler import LoadScopeScheduling

# Each test process and each of its children: several threads per process on few cores only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Readline in xdist's main process sets them for the others, where Rich would take them for the size of the terminal.
for size in ("COLUMNS", "LINES"):
    os.environ.pop(size, None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lane", choices=LANES, help="run the tests of one lane only (see tests/lanes.py)")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if is_left_out(collection_path, config.getoption("--lane")) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        check_lane(item.nodeid, item.path, getattr(item, "fixturenames", ()))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """Keep the log that a test sets up for a process of the service from the tests after it."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for handler in list(root.handlers):
        if type(handler).__module__ == "tandem.cluster.telemetry.setup":
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def ray_local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray of this test run's own, whatever else runs on the machine; ended with the session."""
    from tandem.cluster.processes.local_ray import local_ray

    # More CPUs than there may be: what the tests start asks for a few, and mostly waits.
    token_file = tmp_path_factory.mktemp("ray") / "token"
    options = {"object_store_memory": 200 << 20, "log_to_driver": False, "logging_level": "ERROR"}
    with local_ray(token_file, with_job_server=True, num_cpus=4, **options):
        yield


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The directory of the built-in tiny model."""
    from tandem.rl.tiny.model import TINY_MODEL_DIR

    return TINY_MODEL_DIR
