"""The device of a learner, which follows from the GPUs that Ray granted, and the devices of its group."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

from tandem.cluster.config import Device
from tandem.cluster.errors import LearnerDevicesError
from tandem.cluster.processes.granted_gpus import granted_gpus

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankDevice:
    """The device of a rank. `gpu` is the UUID, None for a CPU."""

    node: str
    gpu: str | None


class KeyValueStore(Protocol):
    """The part of torch's stores that is used here. `get` waits for the key."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...


def learner_device(wanted: Device) -> torch.device:
    """Return the device; auto: CUDA exactly if Ray has granted a GPU, outside an actor if torch sees one.

    Raises PolicyError if torch, built for CUDA, doesn't see the granted GPU.
    """
    import torch

    from tandem.rl.policy import resolve_device

    granted = granted_gpus()
    if wanted != "auto" or granted is None:
        device = resolve_device(wanted)
    elif granted and torch.version.cuda is None and torch.version.hip is None:
        logger.warning(
            "Ray has granted GPU %s, but this torch is a build for CPUs, so the learner computes on the CPU. Install "
            "a build for CUDA, or set learners.num_gpus to 0.",
            ", ".join(granted),
        )
        device = torch.device("cpu")
    else:
        device = resolve_device("cuda" if granted else "cpu")
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device


def own_device(device: torch.device) -> RankDevice:
    """Return the device of this rank as its peers know it. For a Ray actor."""
    import ray
    import torch

    gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None
    return RankDevice(ray.get_runtime_context().get_node_id(), gpu)


def compare_devices(store: KeyValueStore, rank: int, world_size: int, own: RankDevice) -> None:
    """Compare the devices of all ranks before they connect. Raise LearnerDevicesError, on every rank, if two collide.

    NCCL would find it only in the first all-reduce, and with an error that looks like a lost connection.
    """
    store.set(_key(rank), json.dumps(asdict(own)))
    devices = [RankDevice(**json.loads(store.get(_key(of)))) for of in range(world_size)]
    if fault := collision(devices):
        raise LearnerDevicesError(fault)


def collision(devices: Sequence[RankDevice]) -> str | None:
    """Return why the ranks with these devices can't be one group, or None."""
    seen: dict[RankDevice, int] = {}
    for rank, device in enumerate(devices):
        if device.gpu is None:
            if any(other.gpu for other in devices):
                on_gpu = next(of for of, other in enumerate(devices) if other.gpu)
                return (
                    f"learner {rank} computes on a CPU of node {device.node}, but learner {on_gpu} on a GPU. Set "
                    "learners.device to cuda or cpu, and check that every node with GPUs has torch for CUDA."
                )
        elif device in seen:
            return (
                f"learners {seen[device]} and {rank} share GPU {device.gpu} of node {device.node}, but each learner of "
                "a group needs its own. Leave learners.num_gpus unset or set it to 1, and check that nothing but Ray "
                "sets CUDA_VISIBLE_DEVICES."
            )
        seen[device] = rank
    return None


def _key(rank: int) -> str:
    return f"tandem/device/{rank}"
