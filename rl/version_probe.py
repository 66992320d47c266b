"""The probe of a policy version, stored beside its adapter, and the judgement of an engine that has loaded it.

    probe = VersionProbe(token_ids, policy.probe(), dtype, {"the base model": ..., "the version before": ...})
    verdict = probe.judge(logprobs_of_the_engine, dtype_of_the_engine)
    if not verdict.is_right: ...

Importing this needs no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tandem.rl.checkpoint_files import MANIFEST
from tandem.rl.probe import Difference, compare, tolerance_for

BASE = "the base model"
PREVIOUS = "the version before"


@dataclass(frozen=True)
class Verdict:
    """How an engine's logprobs of a version compare with the learner's."""

    difference: Difference
    answers_as: str | None
    """The other weights whose logprobs the engine gave instead, if it did."""

    @property
    def is_right(self) -> bool:
        return self.difference.is_agreement and self.answers_as is None

    def __str__(self) -> str:
        instead = f"; they are those of {self.answers_as}" if self.answers_as else ""
        return f"its logprobs differ from the learner's by {self.difference}{instead}"


@dataclass(frozen=True)
class VersionProbe:
    """The learner's logprobs of the probe under a version, and under weights that an engine may use by mistake."""

    token_ids: list[int]
    logprobs: list[float]
    """Of each token but the first."""
    dtype: str
    """Of the learner's base weights."""
    others: dict[str, list[float]] = field(default_factory=dict)
    """The same tokens under other weights, by what these are."""

    def judge(self, found: Sequence[float], dtype: str) -> Verdict:
        """Compare the logprobs that an engine, with base weights of `dtype`, has for the same tokens."""
        tolerance = tolerance_for(self.dtype, dtype)
        difference = compare(self.logprobs, found, tolerance)
        apart = {name: compare(own, found, tolerance) for name, own in self.others.items()}
        instead = [
            name
            for name, own in self.others.items()
            if self._is_rather(own, found, tolerance.measurable)
            and (difference.is_agreement or apart[name].is_agreement)
        ]
        return Verdict(difference, min(instead, key=lambda name: apart[name].mean, default=None))

    def _is_rather(self, other: Sequence[float], found: Sequence[float], measurable: float) -> bool:
        """True if `found` is nearer to `other`, along the line from this version's logprobs to them.

        The line is what the other weights would change. Rounding moves the logprobs in all directions, so it hardly
        counts along one, and even a change that is smaller than the tolerance is recognised.
        """
        if not all(math.isfinite(value) for values in (other, found) for value in values):
            return False
        line = [b - a for a, b in zip(self.logprobs, other, strict=True)]
        length_squared = sum(value * value for value in line)
        if length_squared < measurable**2 * len(line):
            return False
        along = sum((f - a) * d for f, a, d in zip(found, self.logprobs, line, strict=True))
        return along / length_squared > 0.5

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, self.logprobs))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_checkpoint(cls, directory: Path) -> VersionProbe | None:
        """Return the probe in a checkpoint's manifest; None for a version that learners didn't make."""
        probe = json.loads((directory / MANIFEST).read_bytes()).get("metadata", {}).get("probe")
        return None if probe is None else cls(**probe)

    def described(self, manifest: bytes) -> bytes:
        """Return a checkpoint's manifest with this probe, as `of_checkpoint` reads it."""
        fields = json.loads(manifest)
        fields["metadata"] = {**fields.get("metadata", {}), "probe": self.to_json()}
        return json.dumps(fields, indent=2, sort_keys=True).encode()
