"""Repair of a batch that the service rejects: without the trajectories and metrics that it can't accept."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import zstandard
from pydantic import ValidationError

from tandem.client import Fault
from tandem.rl.plain_data import finite_number
from tandem.rl.trajectories import Trajectory

Place = tuple[int, int]
"""Group and trajectory."""


@dataclass(frozen=True)
class Repair:
    groups_zstd: bytes
    removed: tuple[Place, ...]
    """Trajectories that were left out, in the numbering of the batch before."""
    num_left: int
    metrics: tuple[str, ...]
    """Names of metrics that were left out because they aren't finite numbers."""

    def __str__(self) -> str:
        parts = []
        if self.removed:
            listed = ", ".join(f"{trajectory} of group {group}" for group, trajectory in self.removed[:5])
            more = ", ..." if len(self.removed) > 5 else ""
            parts.append(f"{len(self.removed)} trajectories ({listed}{more})")
        if self.metrics:
            parts.append(f"the metrics {', '.join(self.metrics[:5])}, which aren't finite")
        return " and ".join(parts)


def repaired(groups_zstd: bytes, faults: Iterable[Fault]) -> Repair | None:
    """Return the batch without what the service or the wire format rejects; None if that changes nothing.

    Args:
        groups_zstd: a stored batch, perhaps of an older release that didn't check results.
        faults: the service's, with places like ("body", "trajectory_groups", 0, "trajectories", 1, "reward").
    """
    faulty = {(place, "metrics" in fault.loc) for fault in faults if (place := _trajectory(fault.loc)) is not None}
    groups = json.loads(zstandard.ZstdDecompressor().decompressobj().decompress(groups_zstd))
    removed: list[Place] = []
    metrics: set[str] = set()
    kept_groups = []
    for number, group in enumerate(groups):
        kept = []
        for index, trajectory in enumerate(group["trajectories"]):
            dropped = _drop_metrics(trajectory)
            metrics |= dropped
            place = (number, index)
            is_faulty = (place, False) in faulty or ((place, True) in faulty and not dropped)
            if is_faulty or not _is_valid(trajectory):
                removed.append(place)
            else:
                kept.append(trajectory)
        if kept:
            kept_groups.append({**group, "trajectories": kept})
    if not removed and not metrics:
        return None
    content = json.dumps(kept_groups, allow_nan=False).encode()
    num_left = sum(len(group["trajectories"]) for group in kept_groups)
    return Repair(zstandard.ZstdCompressor().compress(content), tuple(removed), num_left, tuple(sorted(metrics)))


def _trajectory(loc: tuple[str | int, ...]) -> Place | None:
    match loc:
        case (_, "trajectory_groups", int(group), "trajectories", int(trajectory), *_):
            return group, trajectory
    return None


def _drop_metrics(trajectory: dict[str, Any]) -> set[str]:
    """Remove metrics that aren't finite, and return their names. Older releases stored NaN as null."""
    metrics = trajectory.get("metrics") or {}
    names = {name for name, value in metrics.items() if not isinstance(value, str) and finite_number(value) is None}
    for name in names:
        del metrics[name]
    return names


def _is_valid(trajectory: dict[str, Any]) -> bool:
    try:
        Trajectory.model_validate_json(json.dumps(trajectory, allow_nan=False))
    except (ValueError, ValidationError):
        return False
    return True
