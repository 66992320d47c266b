"""Leaves the processors to engines that start: a service answers once they have."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

from tandem.cluster.config import TandemConfig

logger = logging.getLogger(__name__)
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
    """Wait until the engine has started, has failed, or other work is urgent. Not in an event loop's thread.

    An engine that never starts, for instance for want of GPUs, ends the wait after ENGINE_FIRST_S. /ready and /health
    say so all the time, from what Serve knows of it.
    """
    deadline = time.monotonic() + ENGINE_FIRST_S
    try:
        while not is_urgent():
            if time.monotonic() >= deadline:
                logger.warning(
                    "An engine hasn't started within %g s; what waited for it doesn't any more", ENGINE_FIRST_S
                )
                break
            with suppress(TimeoutError):
                started.result(timeout_s=TICK_S)
                return
    except Exception as error:  # an engine that fails doesn't keep other parts from starting
        logger.warning("An engine hasn't started, and other parts start without it: %r", error)
    started.cancel()  # type: ignore[no-untyped-call]


def has_room_for_all(config: TandemConfig, num_cpus: float) -> bool:
    """Return whether a cluster with this many CPUs has room for all learners and engines while they start."""
    wanted = sum(
        base.learners.count * base.learners.num_cpus + base.engine.replicas * base.engine.num_cpus
        for base in config.base_models
    )
    return num_cpus >= wanted + START_CPUS
