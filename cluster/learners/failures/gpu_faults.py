"""GPUs that fail again and again: named to the operator, and left out where the cluster has others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

from tandem.cluster.errors import StageError
from tandem.cluster.learners.failures.stacks import Whereabouts
from tandem.cluster.processes.accelerator_failures import accelerator_fault
from tandem.cluster.processes.ray_failures import stage_error

NODE_ID = "ray.io/node-id"
"""The label that Ray gives every node."""
FAULTS_IN_A_ROW = 2
"""After so many, the GPU and not chance is taken for the cause."""


class GpuFaults:
    """Remembers which GPU of a group's learners failed last, and the nodes to avoid."""

    def __init__(self) -> None:
        self._last: tuple[str, tuple[str, ...]] | None = None
        self._in_a_row = 0
        self._avoided: set[str] = set()

    def explain(self, stage: str, error: BaseException, rank: int, place: Whereabouts | None) -> BaseException:
        """Return the StageError of a learner's failure. A fault of its GPU is counted, and names the GPU."""
        fault = accelerator_fault(_cause(error))
        if fault is None or place is None:
            return stage_error(stage, "a learner", error)
        key = place.node_id, place.gpus
        self._in_a_row = self._in_a_row + 1 if key == self._last else 1
        self._last = key
        remedy = "The next attempt starts a new process, which needn't get the same GPU."
        if self._in_a_row >= FAULTS_IN_A_ROW:
            self._avoided.add(place.node_id)
            remedy = (
                f"This GPU has failed {self._in_a_row} times in a row. Learners avoid its node from now on, if others "
                "have room. Look for Xid errors in the node's kernel log (`dmesg`), and take the node out of the "
                f"cluster: `ray drain-node --node-id {place.node_id} --reason DRAIN_NODE_REASON_PREEMPTION "
                '--reason-message "faulty GPU"`, or your cloud\'s console.'
            )
        return StageError(stage, f"the GPU of learner {rank} ({place}) failed: {fault}.", remedy, retryable=True)

    def succeeded(self) -> None:
        """Count faults anew: the GPUs in use have taken a gradient step."""
        self._last, self._in_a_row = None, 0

    def selector(self, bundle: Mapping[str, float], count: int) -> list[dict[str, str]] | None:
        """Return label selectors for `count` bundles that leave out avoided nodes, None if the others lack room."""
        others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in self._avoided]
        if not self._avoided or sum(_fitting(node["Resources"], bundle) for node in others) < count:
            return None
        return [{NODE_ID: f"!in({','.join(sorted(self._avoided))})"}] * count


def _cause(error: BaseException) -> BaseException:
    if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, BaseException):
        return error.cause
    return error


def _fitting(resources: Mapping[str, Any], bundle: Mapping[str, float]) -> int:
    """Return how many bundles a node's resources hold, whether in use or not."""
    return int(min(resources.get(kind, 0.0) / amount for kind, amount in bundle.items()))
