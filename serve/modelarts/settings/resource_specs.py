"""Resource specifications: the sizes of workers that jobs can choose."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tandem.cluster.config import TandemConfig

LEARNERS_SPEC_ID = 0
"""Built-in algorithms run on the service's learners, whose resources the operator sets."""
SIZES = tuple(2**n for n in range(10))
GPU_IDS = 1000  # each GPU type has a range of a thousand ids, derived from its name


@dataclass(frozen=True)
class ResourceSpec:
    """The resources of one worker of a job."""

    spec_id: int
    spec_code: str
    num_cpus: float
    num_gpus: int
    gpu_type: str
    max_num: int
    """The number of such workers that the whole cluster can hold."""
    has_room: bool = True
    """True if one such worker could start now."""


@dataclass(frozen=True)
class NodeResources:
    """One node of the cluster."""

    num_cpus: float
    num_gpus: int
    gpu_type: str


def available_specs(config: TandemConfig) -> list[ResourceSpec]:
    """Return all specifications that jobs can choose: the learners, configured ones, and sizes of the live cluster."""
    import ray

    # Ray gives these two functions no types.
    nodes = [node_resources(node["Resources"]) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    live = specs_of(nodes, ray.available_resources())  # type: ignore[no-untyped-call]
    configured = [ResourceSpec(**spec.model_dump()) for spec in config.resource_specs]
    return [learners_spec(config), *merged(configured, live)]


def learners_spec(config: TandemConfig) -> ResourceSpec:
    """Return the specification of built-in algorithms: all learners of the first base model."""
    learners = config.base_models[0].learners
    num_gpus = math.ceil(learners.num_gpus or 0) * learners.count  # a learner that shares a GPU counts as one
    num_cpus = learners.num_cpus * learners.count
    return ResourceSpec(LEARNERS_SPEC_ID, "tandem.learners", num_cpus, num_gpus, "", max_num=1)


def node_resources(resources: Mapping[str, float]) -> NodeResources:
    """Return a node from Ray's description of its resources."""
    types = [name.removeprefix("accelerator_type:") for name in resources if name.startswith("accelerator_type:")]
    num_gpus = int(resources.get("GPU", 0))
    return NodeResources(resources.get("CPU", 0), num_gpus, (sorted(types) or ["GPU"])[0] if num_gpus else "")


def specs_of(nodes: Sequence[NodeResources], available: Mapping[str, float]) -> list[ResourceSpec]:
    """Return the specifications that these nodes can hold, in sizes of powers of two, CPU sizes first.

    An id depends on size and GPU type alone, so it stays the same when nodes are added or removed.
    """
    specs = []
    for size in SIZES:
        if max_num := sum(int(node.num_cpus // size) for node in nodes):
            specs.append(ResourceSpec(size, f"tandem.cpu.{size}", size, 0, "", max_num, _fits(available, size, 0)))
    for gpu_type in sorted({node.gpu_type for node in nodes if node.num_gpus}):
        of_type = [node for node in nodes if node.gpu_type == gpu_type and node.num_gpus]
        for size in SIZES:
            if not (max_num := sum(node.num_gpus // size for node in of_type)):
                break
            num_cpus = max(1, int(min(node.num_cpus / node.num_gpus for node in of_type) * size))
            id = GPU_IDS * (1 + zlib.crc32(gpu_type.encode())) + size
            code = f"tandem.{gpu_type.lower()}.{size}"
            specs.append(ResourceSpec(id, code, num_cpus, size, gpu_type, max_num, _fits(available, num_cpus, size)))
    return specs


def find_spec(specs: Iterable[ResourceSpec], spec_id: int | None) -> ResourceSpec | None:
    """Return a specification by its id, or None if the cluster doesn't have it now."""
    return next((spec for spec in specs if spec.spec_id == spec_id), None)


def merged(configured: Iterable[ResourceSpec], live: Iterable[ResourceSpec]) -> list[ResourceSpec]:
    """Return both, sorted by id. A configured specification replaces a live one with the same id."""
    by_id = {spec.spec_id: spec for spec in (*live, *configured)}
    return [by_id[id] for id in sorted(by_id)]


def _fits(available: Mapping[str, float], num_cpus: float, num_gpus: int) -> bool:
    return available.get("CPU", 0) >= num_cpus and available.get("GPU", 0) >= num_gpus
