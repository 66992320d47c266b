"""Resource specifications: the sizes of a worker that a cluster has room for."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

SIZES = tuple(2**n for n in range(10))
GPU_IDS = 1000  # a GPU type has a thousand ids of its own, chosen by its name


@dataclass(frozen=True)
class ResourceSpec:
    """What one worker of a job gets, and how many such workers the cluster could hold."""

    spec_id: int
    spec_code: str
    num_cpus: float
    num_gpus: int
    gpu_type: str
    max_num: int
    has_room: bool = True
    """Whether one such worker could start now."""


@dataclass(frozen=True)
class NodeResources:
    """One node of the cluster."""

    num_cpus: float
    num_gpus: int
    gpu_type: str


def cluster_nodes() -> list[NodeResources]:
    """The living nodes of the Ray cluster that this process is connected to."""
    import ray

    return [node_resources(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def node_resources(resources: Mapping[str, float]) -> NodeResources:
    """A node, from what Ray says that it has."""
    types = [name.removeprefix("accelerator_type:") for name in resources if name.startswith("accelerator_type:")]
    num_gpus = int(resources.get("GPU", 0))
    return NodeResources(resources.get("CPU", 0), num_gpus, (sorted(types) or ["GPU"])[0] if num_gpus else "")


def specs_of(nodes: Sequence[NodeResources], available: Mapping[str, float]) -> list[ResourceSpec]:
    """The specifications that these nodes have room for, in sizes of powers of two, CPU ones first.

    A specification's id follows from its size and GPU type alone, so it stays the same while nodes come and go.
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
    """None when the cluster doesn't have it (any more)."""
    return next((spec for spec in specs if spec.spec_id == spec_id), None)


def merged(configured: Iterable[ResourceSpec], live: Iterable[ResourceSpec]) -> list[ResourceSpec]:
    """Configured specifications, and live ones whose id isn't taken, by id."""
    by_id = {spec.spec_id: spec for spec in (*live, *configured)}
    return [by_id[id] for id in sorted(by_id)]


def _fits(available: Mapping[str, float], num_cpus: float, num_gpus: int) -> bool:
    return available.get("CPU", 0) >= num_cpus and available.get("GPU", 0) >= num_gpus
