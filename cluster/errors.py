"""Errors of the cluster layer. Each is picklable, because it may cross a process boundary."""

from __future__ import annotations


class ClusterError(Exception):
    """Root of the cluster layer's errors."""


class ArtifactError(ClusterError, OSError):
    """A blob or directory of the artifact store is missing, damaged or not writable."""


class LeaseLostError(ClusterError, RuntimeError):
    """The claim on a job is no longer valid: the job was cancelled or taken over, or its model was deleted."""


class JobCancelledError(ClusterError, RuntimeError):
    """A user cancelled the job."""


class StoreUnavailableError(ClusterError, OSError):
    """The job store accepted no write before the deadline."""


class ServiceStopsError(ClusterError, RuntimeError):
    """The service shuts down and the running job's grace period is over; the job resumes after the next start."""


class LearnersLostError(ClusterError, RuntimeError):
    """The learners ended during the work for another job. This job has to begin again, and no try of it is counted."""


class RayStartError(ClusterError, RuntimeError):
    """Ray doesn't start on this machine."""


class EngineAsleepError(ClusterError, RuntimeError):
    """The engine sleeps while learners use its memory, longer than a request may wait."""


class AdapterUnavailableError(ClusterError, LookupError):
    """A policy version's adapter can't be loaded into the engine."""


class VersionNotFiniteError(AdapterUnavailableError):
    """A policy version whose weights or logits aren't finite; no retry helps."""

    def __init__(self, digest: str, reason: str):
        super().__init__(digest, reason)
        self.digest, self.reason = digest, reason

    def __str__(self) -> str:
        return f"Policy version {self.digest} is unusable: {self.reason}."


class WrongVersionError(AdapterUnavailableError):
    """An engine doesn't compute a policy version as the learner that made it."""

    def __init__(self, digest: str, reason: str):
        super().__init__(digest, reason)
        self.digest, self.reason = digest, reason

    def __str__(self) -> str:
        return f"This engine doesn't serve policy version {self.digest}: {self.reason}."


class EngineDeadError(ClusterError, RuntimeError):
    """The vLLM engine core died; the replica must be replaced."""


class EngineLostError(EngineDeadError):
    """The engine replica that was asked for ended, was replaced, or can't be reached."""


class PeerLostError(ClusterError, ConnectionError):
    """A learner lost its connection to another learner of its group."""


class LearnerDevicesError(ClusterError, RuntimeError):
    """Learners of a group can't compute together on the devices that they have; no retry helps."""


class StageError(ClusterError, RuntimeError):
    """A stage of a job failed. The message names the stage, the cause, and what to do.

    `retryable` is True if the same job may succeed in another attempt (a learner died, a deadline passed), and False
    if it would fail again (the payload can't be tokenised).
    """

    def __init__(self, stage: str, cause: str, remedy: str, retryable: bool = False):
        super().__init__(stage, cause, remedy, retryable)
        self.stage, self.cause, self.remedy, self.retryable = stage, cause, remedy, retryable

    def __str__(self) -> str:
        return f"Stage {self.stage!r} failed: {self.cause} {self.remedy}".strip()
