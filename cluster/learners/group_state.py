"""The state of the learners of a base model, as the service shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import ray

from tandem.cluster.learners.failures.stacks import Whereabouts
from tandem.cluster.learners.step_meter import Measured

ANSWER_S = 1.0


class LearnerState(TypedDict):
    rank: int
    node: str
    """The node's address."""
    pid: int
    gpus: list[str]
    measured: Measured | None
    """None if the learner doesn't answer now."""


def learner_states(
    workers: Sequence[Any], places: Sequence[Whereabouts], group: str, timeout_s: float = ANSWER_S
) -> list[LearnerState]:
    """Return the state of each learner. One that doesn't answer in time has no measurements.

    `group` is the concurrency group of calls that run beside a step.
    """
    calls = [worker.measured.options(concurrency_group=group).remote() for worker in workers]
    ready = set(ray.wait(calls, num_returns=len(calls), timeout=timeout_s)[0]) if calls else set()
    return [
        {
            "rank": rank,
            "node": place.node_ip,
            "pid": place.pid,
            "gpus": list(place.gpus),
            "measured": _measured(call) if call in ready else None,
        }
        for rank, (call, place) in enumerate(zip(calls, places, strict=False))
    ]


def _measured(call: Any) -> Measured | None:
    try:
        found: Measured = ray.get(call)
    except ray.exceptions.RayError:  # it has just ended
        return None
    return found
