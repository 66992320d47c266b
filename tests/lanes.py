"""The three lanes of the tests. `make test` runs one after the other; CI can run each by itself.

unit  no Ray
ray   actors, engines and learners on a local Ray
e2e   whole services, clusters and submitted jobs

A file belongs to one lane, which follows from its folder and from what it starts, so that a lane imports no file of
another. The processes of a lane share its files; each has its own Ray. All tests of the running service stay
together, so that one process starts it, and so do those of one engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

LANES = ("unit", "ray", "e2e")
E2E_FOLDERS = {"e2e", "nodes"}
STARTS_PROCESSES = re.compile(r"\b(ray_head|ServiceProcess|run_campaign)\b")
RAY_FIXTURE = "ray_local"
SHARED_FOLDERS = ("tests/e2e/", "tests/cluster/engine/one_engine/")
"""The tests of each share what the first of them starts: the service, an engine."""


def lane_of(file: Path) -> str:
    """Return the lane of a test file."""
    if E2E_FOLDERS & set(file.relative_to(Path(__file__).parent).parts):
        return "e2e"
    source = file.read_text()
    if STARTS_PROCESSES.search(source):
        return "e2e"
    return "ray" if re.search(rf"\b{RAY_FIXTURE}\b", source) else "unit"


def is_left_out(file: Path, lane: str | None) -> bool:
    """Return True if `file` has tests of other lanes than the one that runs. `None` runs them all."""
    return lane is not None and file.match("test_*.py") and lane_of(file) != lane


def check_lane(name: str, file: Path, fixtures: Iterable[str]) -> None:
    """Reject a unit test that starts Ray, perhaps through a fixture of a fixture: each process would start one."""
    if RAY_FIXTURE in fixtures and lane_of(file) == "unit":
        raise pytest.UsageError(f"{name} starts Ray: name {RAY_FIXTURE} in its file, which moves it to the lane ray.")


def group_of(nodeid: str) -> str:
    """Return the name of the tests that one process runs in their order: a file, or one of SHARED_FOLDERS."""
    file = nodeid.partition("::")[0]
    return next((folder for folder in SHARED_FOLDERS if file.startswith(folder)), file)
