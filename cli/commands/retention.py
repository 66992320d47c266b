"""`tandem retention`: what limits on versions, optimizer states and trajectories would delete, and how large it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tandem.rl.checkpoint_files import OPTIMIZER

if TYPE_CHECKING:
    from tandem.cluster.artifacts import Artifacts
    from tandem.cluster.config import RetentionConfig, TrajectoriesConfig
    from tandem.serve.store.store import Store

COLUMNS = {"model": "model", "version": "step", "deleted": "deleted", "bytes": "bytes"}


@dataclass(frozen=True)
class Deletion:
    """A row of the list."""

    model: str
    step: int | None
    deleted: str
    """"version", "optimizer state", or "trajectories of N jobs and logs"."""
    bytes: int
    """Of the files. Versions with the same weights share theirs, which count once."""


def kept(store: Store, settings: RetentionConfig) -> list[str]:
    """Return the versions, by their names, that the settings would delete or shrink if no user kept them."""
    limits = [limit for limit in (settings.keep_versions, settings.keep_optimizer) if limit is not None]
    found = store.retention.kept_versions(min(limits)) if limits else []
    return [f"{version.model}:step{version.step}" for version in found]


def deletions(store: Store, artifacts: Artifacts, settings: RetentionConfig) -> list[Deletion]:
    """Return what the settings would delete now. Changes nothing."""
    found: list[Deletion] = []
    counted: set[str] = set()

    def add(model: str, step: int, digest: str, deleted: str) -> None:
        sizes = {} if digest in counted else artifacts.checkpoint_sizes(digest)
        counted.add(digest)
        size = sizes.get(OPTIMIZER, 0) if deleted == "optimizer state" else sum(sizes.values())
        found.append(Deletion(model, step, deleted, size))

    retired = [] if settings.keep_versions is None else store.retention.surplus_versions(settings.keep_versions)
    for version in retired:
        add(version.model, version.step, version.digest, "version")
    if settings.keep_optimizer is not None:
        for version in store.retention.surplus_optimizers(settings.keep_optimizer):
            if version not in retired:
                add(version.model, version.step, version.digest, "optimizer state")
    return found


def trajectory_deletions(store: Store, settings: TrajectoriesConfig) -> list[Deletion]:
    """Return the trajectories that the settings would delete now, by model. Changes nothing."""
    from tandem.serve.trajectories.removal import limits

    sources: dict[str, list[int]] = {}
    for source in store.trajectory_index.removable(*limits(settings, store.database.now())):
        sources.setdefault(source.model, []).append(source.num_bytes)
    return [
        Deletion(model, None, f"trajectories of {len(sizes)} jobs and logs", sum(sizes))
        for model, sizes in sources.items()
    ]
