"""Errors of the cluster layer. Each is picklable, because it may cross a process boundary."""

from __future__ import annotations


class ClusterError(Exception):
    """Root of the cluster layer's errors."""


class ArtifactError(ClusterError, OSError):
    """A blob or directory of the artifact store is missing or can't be written."""


class LeaseLostError(ClusterError, RuntimeError):
    """The claim on a job was fenced: it was cancelled, its model was deleted, or another coordinator took it over."""


class JobCancelledError(ClusterError, RuntimeError):
    """The user asked for the job to be cancelled."""


class StoreUnavailableError(ClusterError, OSError):
    """The job store has taken no write until the deadline."""


class ServiceStopsError(ClusterError, RuntimeError):
    """The service ends, and the running job has had its grace: it goes on when the service is back."""


class AdapterUnavailableError(ClusterError, LookupError):
    """A policy version's adapter can't be loaded into the engine."""


class EngineDeadError(ClusterError, RuntimeError):
    """The vLLM engine core has died; the replica must be replaced."""


class PeerLostError(ClusterError, ConnectionError):
    """A learner has lost its connection to another one of its group."""


class StageError(ClusterError, RuntimeError):
    """A stage of a job failed. The message names the stage, the cause, and what to do.

    `retryable` says whether the same job may succeed when it runs again (a learner died, a deadline passed),
    or would fail the same way (the payload can't be tokenised).
    """

    def __init__(self, stage: str, cause: str, remedy: str, retryable: bool = False):
        super().__init__(stage, cause, remedy, retryable)
        self.stage, self.cause, self.remedy, self.retryable = stage, cause, remedy, retryable

    def __str__(self) -> str:
        return f"Stage {self.stage!r} failed: {self.cause} {self.remedy}".strip()
