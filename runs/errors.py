"""Why a run ends before its last job. Every message says what was wrong, where, and what to do."""

from __future__ import annotations


class RunError(RuntimeError):
    """Root of the errors that end a run. What it has done stays, and the same command goes on from there."""


class TaskFileError(RunError, ValueError):
    """A task file that isn't valid, or that has changed where a run that has begun can't follow."""


class RunDirectoryError(RunError, OSError):
    """A run's directory that can't be used: another run has it, or what is in it can't be read."""


class RequestRefusedError(RunError):
    """The service refused a request that no repetition would change."""


class ServiceAwayError(RunError, ConnectionError):
    """The service hasn't answered for as long as the run is told to wait."""


class JobFailedError(RunError):
    """A training job failed or was cancelled."""


class RolloutsFailedError(RunError):
    """More rollouts failed than the run is told to do without."""


class PolicyLagError(RunError, AssertionError):
    """A batch was sampled by an older policy than `max_policy_lag` allows, or nothing tells which policy sampled it."""


class ForeignVersionError(RunError):
    """The model has versions that this run hasn't made."""
