"""The statuses of a job's version."""

from __future__ import annotations

from enum import IntEnum


class UserJobStatus(IntEnum):
    """The statuses of the API family that this service uses, by their numbers on the wire."""

    INIT = 1
    SUBMITTING = 4
    SUBMIT_FAILED = 5
    WAITING = 7
    RUNNING = 8
    KILLING = 9
    COMPLETED = 10
    FAILED = 11
    KILLED = 12
    CANCELED = 13
    LOST = 14

    @property
    def has_ended(self) -> bool:
        return self not in OPEN_STATUSES


OPEN_STATUSES = (
    UserJobStatus.INIT,
    UserJobStatus.SUBMITTING,
    UserJobStatus.WAITING,
    UserJobStatus.RUNNING,
    UserJobStatus.KILLING,
)
