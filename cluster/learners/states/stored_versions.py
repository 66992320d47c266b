"""Versions that a learner reads from the artifacts, within the LoRA limits of its base model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import BaseModelConfig

if TYPE_CHECKING:
    from tandem.rl.checkpoints import LearnerState
    from tandem.rl.settings import LoraSettings


class StoredVersions:
    """Reads states by digest, after their digests were verified. The adapter that was read last stays in memory.

    Both methods raise RLError for a damaged version, LoraLimitError beyond the limits, and OSError for a missing one.
    """

    def __init__(self, artifacts: Artifacts, base: BaseModelConfig):
        self._artifacts, self._base = artifacts, base
        self._last: tuple[str, LearnerState] | None = None

    def state(self, digest: str) -> LearnerState:
        """Return a version's state."""
        from tandem.rl.checkpoints import read_checkpoint

        directory = self._artifacts.pull_checkpoint(digest)
        return replace(read_checkpoint(directory), lora=self._lora_of(directory))

    def adapter(self, digest: str) -> LearnerState:
        """Return a version's state without that of its optimizer."""
        from tandem.rl.checkpoints import LearnerState, read_adapter

        if self._last is None or self._last[0] != digest:
            directory = self._artifacts.pull_adapter(digest)
            self._last = digest, LearnerState(read_adapter(directory), lora=self._lora_of(directory))
        return self._last[1]

    def _lora_of(self, checkpoint: Path) -> LoraSettings:
        from tandem.rl.checkpoints import read_lora

        lora = read_lora(checkpoint)
        self._base.check_lora(lora)
        return lora
