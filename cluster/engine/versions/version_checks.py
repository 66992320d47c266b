"""Whether an engine answers as the learner that made a version: its verdicts, and the versions that it refuses.

Importing this imports neither vLLM nor torch.
"""

from __future__ import annotations

import time
from typing import TypedDict

from tandem.cluster.errors import WrongVersionError
from tandem.rl.version_probe import Verdict

REFUSED_S = 60.0  # then the files may have been repaired


class VersionReport(TypedDict):
    """How an engine's logprobs of a version compare with the learner's, in nats."""

    is_right: bool
    max: float
    mean: float
    tolerance_max: float
    tolerance_mean: float
    answers_as: str | None
    """The weights that the engine used instead, if it can tell."""


def report(verdict: Verdict) -> VersionReport:
    difference = verdict.difference
    return {
        "is_right": verdict.is_right,
        "max": difference.max,
        "mean": difference.mean,
        "tolerance_max": difference.tolerance.max,
        "tolerance_mean": difference.tolerance.mean,
        "answers_as": verdict.answers_as,
    }


class VersionChecks:
    """The verdicts on the loaded versions, and those that were refused lately."""

    def __init__(self) -> None:
        self._right: dict[str, Verdict] = {}
        self._refused: dict[str, tuple[float, Verdict]] = {}

    def check(self, digest: str) -> None:
        """Raise WrongVersionError for a version that was refused in the last REFUSED_S seconds."""
        since, verdict = self._refused.get(digest, (0.0, None))
        if verdict is not None and time.monotonic() - since < REFUSED_S:
            raise WrongVersionError(digest, str(verdict))

    def accept(self, digest: str, verdict: Verdict | None) -> None:
        """Record a loaded version; None: it has no probe, because it was made without learners."""
        self._refused.pop(digest, None)
        if verdict is not None:
            self._right[digest] = verdict

    def refuse(self, digest: str, verdict: Verdict) -> WrongVersionError:
        """Record a version that this engine doesn't apply, and return the error to raise."""
        self._refused[digest] = time.monotonic(), verdict
        return WrongVersionError(digest, str(verdict))

    def forget(self, digest: str) -> None:
        """Forget a version that is unloaded."""
        self._right.pop(digest, None)

    def report(self, digest: str) -> VersionReport | None:
        """Return the verdict on a version that is loaded or was refused; None if there is none."""
        verdict = self._right.get(digest) or self._refused.get(digest, (0.0, None))[1]
        return None if verdict is None else report(verdict)
