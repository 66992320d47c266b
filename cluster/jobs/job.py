"""A training job as the coordinator sees it, and the store that it needs. The service implements the store."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel

if TYPE_CHECKING:
    from tandem.cluster.jobs.phases import Outcome, Phase


@dataclass(frozen=True)
class PolicyVersion:
    """One immutable version of a model: version `step` is always the checkpoint with this digest."""

    model_id: str
    step: int
    digest: str  # sha256 of the checkpoint's manifest; the adapter's name in the engine and the artifact store


@dataclass(frozen=True)
class QueuedJob:
    """The part of a job that determines its batch."""

    id: str
    payload_key: str  # artifact key of the zstd-compressed data that the job trains on
    config: BaseModel  # the job's options, of the type that its kind has
    kind: str = field(default="rl", kw_only=True)  # a name in `cluster.jobs.kinds.registry`
    policy: str = field(default="", kw_only=True)  # the model as rollouts ask for it: entity/project/name

    @property
    def shuffle_seed(self) -> int:
        return uuid.UUID(self.id).int


@dataclass(frozen=True)
class ClaimedJob(QueuedJob):
    """A job that this coordinator may run. `attempt` fences every later write of the claim."""

    model_id: str
    attempt: int
    version: PolicyVersion  # the model's newest version, which the job starts from
    next_step: int  # the step of the version that the job will make; never reused
    num_recorded_gradient_steps: int  # by interrupted attempts; not recorded again
    reference_digest: str | None = None  # checkpoint of the KL reference; None when there is no KL penalty
    reward_std_devs: tuple[float, ...] = ()  # of the jobs that made the model's versions, oldest first
    num_handed_back: int = 0  # earlier attempts that ended because the service was stopped
    fresh_optimizer: bool = False  # training begins with a new optimizer
    lost_optimizer: bool = False  # because the version's optimizer state isn't kept
    request_id: str | None = None  # of the request that posted the job, for logs
    traceparent: str | None = None  # of that request's span
    accepted_at: float | None = None  # in seconds since 1970

    @property
    def num_tries(self) -> int:
        """Attempts that count towards `max_attempts`, this one included."""
        return self.attempt - self.num_handed_back


class JobStore(Protocol):
    """The job store as the coordinator uses it. Each write is one transaction, fenced by the claim's attempt.

    Methods that take a claim raise LeaseLostError if the claim no longer holds (taken over, cancelled, model deleted).
    `renew` also raises JobCancelledError if the user asked for cancellation.
    """

    def put_initial_version(self, base_model: str, digest: str) -> None:
        """Record the zero adapter that is version 0 of every model on this base. Idempotent."""

    def claim_next(self, base_model: str, owner: str, lease_s: float) -> ClaimedJob | None:
        """Claim a queued job, or a running one whose lease has run out; None if there is none.

        One job per model, in order of acceptance, and models take turns: the one that has waited longest since its
        last claim is first.
        """

    def change_mark(self) -> object | None:
        """Return a value that usually changes with each write to the store; None if only a query can tell.

        It costs microseconds.
        """

    def next_queued(self, base_model: str) -> QueuedJob | None:
        """Return the queued job that will probably be claimed next, possibly of a model whose job runs. Read-only."""

    def renew(self, job: ClaimedJob, lease_s: float) -> None:
        """Extend the lease."""

    def report_waiting(self, job: ClaimedJob, reason: str | None) -> None:
        """Show users what the job waits for before it can begin, until it begins, ends or is given back."""

    def record_event(self, job: ClaimedJob, type: str, data: Mapping[str, Any], index: int | None = None) -> None:
        """Append an event. Idempotent, so that the call can be repeated when its answer was lost: ignore a second
        training_started, an equal warning, and a gradient_step whose `index` among the job's steps, from 0, is
        recorded already."""

    def complete(self, job: ClaimedJob, version: PolicyVersion, metrics: Mapping[str, float]) -> None:
        """In one transaction, add the version, record training_ended and mark the job succeeded."""

    def fail(self, job: ClaimedJob, error_message: str, about: Mapping[str, str] | None = None) -> None:
        """Record training_failed and mark the job failed. `about`: parts of the message for the event."""

    def cancel(self, job: ClaimedJob) -> None:
        """End a job whose cancellation was requested: training_failed event, state cancelled."""

    def requeue(self, job: ClaimedJob, reason: str) -> None:
        """Give the job back, to be claimed again at once with the next attempt number."""

    def record_phases(self, job: ClaimedJob, phases: Sequence[Phase], outcome: Outcome | None = None) -> None:
        """Replace the phases of the claim's attempt, in order; `outcome` once the attempt has ended.

        Not fenced: an attempt that has lost its claim has used what it has used.
        """

    def hand_back(self, job: ClaimedJob, reason: str) -> None:
        """Give the job back because the service stops. The next claim has the next attempt number, which fences this
        one, but the same `num_tries`."""
