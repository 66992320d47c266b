"""The reasons why a run ends before its last job. Every message says what was wrong, where, and what to do."""

from __future__ import annotations


class RunError(RuntimeError):
    """Root of the errors that end a run. Finished work is kept, and the same command resumes the run."""


class TaskFileError(RunError, ValueError):
    """A task file that isn't valid, or whose changes a run that has started can't adopt."""


class RunDirectoryError(RunError, OSError):
    """A run's directory that can't be used: another run has it, or its contents can't be read."""


class RequestRefusedError(RunError):
    """The service rejected a request, and a retry wouldn't help."""


class BatchRefusedError(RequestRefusedError):
    """The service rejected a batch of which too little would be left without the parts that it names."""


class ServiceAwayError(RunError, ConnectionError):
    """The service hasn't answered for `service.patience_s`."""


class JobFailedError(RunError):
    """A training job failed or was cancelled."""


class RolloutsFailedError(RunError):
    """More rollouts failed than `rollouts.max_failed_fraction` allows."""


class NothingTrainedError(RunError):
    """The run is complete, but none of its jobs made a gradient step."""


class PolicyLagError(RunError, AssertionError):
    """A batch was sampled by an older policy than `max_policy_lag` allows, or by an unknown one."""


class ForeignVersionError(RunError):
    """The model has versions that this run didn't make."""
