"""Leaves the processors to engines that start: a service answers once they have."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

from tandem.cluster.config import TandemConfig

ENGINE_FIRST_S = 300.0  # a bound; an engine starts within 30 s on an idle machine
TICK_S = 0.5
START_CPUS = 4
"""Busy beside learners that start: an engine on a CPU, its core, and replicas of Serve."""


def engine_started(handle: DeploymentHandle[Any]) -> DeploymentResponse[Any] | DeploymentResponseGenerator[Any]:
    """Return an answer that comes once a replica of the engine has started."""
    return handle.check_health.remote()


def wait_for_engine(
    started: DeploymentResponse[Any] | DeploymentResponseGenerator[Any], is_urgent: Callable[[], bool] = lambda: False
) -> None:
    """Wait until the engine has started, or until other work is urgent. Not in an event loop's thread."""
    deadline = time.monotonic() + ENGINE_FIRST_S
    with suppress(Exception):  # an engine that fails doesn't keep other parts from starting
        while not is_urgent() and time.monotonic() < deadline:
            with suppress(TimeoutError):
                started.result(timeout_s=TICK_S)
                return
    started.cancel()  # type: ignore[no-untyped-call]


def has_room_for_all(config: TandemConfig, num_cpus: float) -> bool:
    """Return whether a cluster with this many CPUs has room for all learners and engines while they start."""
    wanted = sum(
        base.learners.count * base.learners.num_cpus + base.engine.replicas * base.engine.num_cpus
        for base in config.base_models
    )
    return num_cpus >= wanted + START_CPUS
