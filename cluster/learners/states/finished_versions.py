"""Versions that a learner has finished and not yet written as checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tandem.cluster.artifacts import Artifacts

if TYPE_CHECKING:
    from tandem.rl.checkpoints import LearnerState, SealedCheckpoint
    from tandem.rl.version_probe import VersionProbe


@dataclass
class FinishedVersion:
    """A version that is complete."""

    state: Callable[[], LearnerState]
    """Waits for the copy of the state."""
    adapter_config: dict[str, Any]
    """Of its adapter; by now, the learner may train a model with other settings."""
    probe: VersionProbe
    sealed: SealedCheckpoint | None = None


class FinishedVersions:
    """Finished versions by name, each sealed once and written as a durable checkpoint.

    finished.hold(name, FinishedVersion(state, adapter_config, probe))
    sealed = finished.seal(name, metadata)   # optional
    digest = finished.write(name, metadata)
    finished.forget(name)
    """

    def __init__(self, artifacts: Artifacts):
        self._artifacts = artifacts
        self._versions: dict[str, FinishedVersion] = {}

    def hold(self, name: str, version: FinishedVersion) -> None:
        self._versions[name] = version

    def seal(self, name: str, metadata: dict[str, str | int]) -> SealedCheckpoint:
        """Return the contents and the digest of a version, before anything is written."""
        from tandem.rl.checkpoints import seal_checkpoint

        version = self._versions[name]
        if version.sealed is None:
            version.sealed = seal_checkpoint(
                version.state(), version.adapter_config, {**metadata, "probe": version.probe.to_json()}
            )
        return version.sealed

    def write(self, name: str, metadata: dict[str, str | int]) -> str:
        """Write a version as a durable checkpoint and return its digest."""
        from tandem.rl.checkpoints import write_sealed

        checkpoint = write_sealed(self._artifacts.checkpoints_dir, self.seal(name, metadata))
        self._artifacts.push_checkpoint(checkpoint.digest)
        return checkpoint.digest

    def forget(self, name: str) -> None:
        """Forget a version, written or not. No error if there is none."""
        self._versions.pop(name, None)
