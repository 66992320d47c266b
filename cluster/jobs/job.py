"""A training job as the coordinator sees it, and the store it needs. The service implements the store."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tandem.rl.config import TrainingConfig


@dataclass(frozen=True)
class PolicyVersion:
    """One immutable version of a model: version `step` is the checkpoint with this digest, for ever."""

    model_id: str
    step: int
    digest: str  # sha256 of the checkpoint's manifest; names the adapter in the engine and the artifact store


@dataclass(frozen=True)
class QueuedJob:
    """What a job's batch follows from."""

    id: str
    payload_key: str  # artifact key of the zstd-compressed JSON {"trajectory_groups": [...]}
    config: TrainingConfig

    @property
    def shuffle_seed(self) -> int:
        return uuid.UUID(self.id).int


@dataclass(frozen=True)
class ClaimedJob(QueuedJob):
    """A job that this coordinator may run. `attempt` fences every later write of this claim."""

    model_id: str
    attempt: int
    version: PolicyVersion  # the model's newest version, which the job starts from
    next_step: int  # the step of the version the job will make; never reused
    num_recorded_gradient_steps: int  # events an interrupted attempt has already recorded; not recorded again
    reference_digest: str | None = None  # checkpoint of the KL reference; None when there is no KL penalty
    reward_std_devs: tuple[float, ...] = ()  # of the jobs that made the model's versions, oldest first
    num_handed_back: int = 0  # earlier attempts that ended because the service was stopped

    @property
    def num_tries(self) -> int:
        """Attempts that count against the most a job may have, this one included."""
        return self.attempt - self.num_handed_back


class JobStore(Protocol):
    """What the coordinator asks of the job store. Each write is one transaction, fenced by the claim's attempt.

    Methods that take a claim raise LeaseLostError when the claim no longer holds (taken over, cancelled, model
    deleted), and JobCancelledError from `renew` when the user asked for cancellation.
    """

    def put_initial_version(self, base_model: str, digest: str) -> None:
        """Records the zero adapter that is version 0 of every model on this base. Idempotent."""

    def claim_next(self, base_model: str, owner: str, lease_s: float) -> ClaimedJob | None:
        """Claims a queued job, or a running one whose lease has run out: one per model, in order of acceptance,
        taking turns between models (the model that waited longest since its last claim goes first)."""

    def next_queued(self, base_model: str) -> QueuedJob | None:
        """The queued job that will probably be claimed next, those of models whose job runs included. A look only."""

    def renew(self, job: ClaimedJob, lease_s: float) -> None:
        """Extends the lease."""

    def report_waiting(self, job: ClaimedJob, reason: str | None) -> None:
        """Shows users what the job waits for before it can begin, until it begins, ends or is given back."""

    def record_event(self, job: ClaimedJob, type: str, data: Mapping[str, Any], index: int | None = None) -> None:
        """Appends an event. Repeats are ignored, so that it can be asked for again when its answer was lost: a second
        training_started, and a gradient_step whose `index` among the job's steps, from 0, is recorded already."""

    def complete(self, job: ClaimedJob, version: PolicyVersion, metrics: Mapping[str, float]) -> None:
        """In one transaction: adds the version, records training_ended, marks the job succeeded."""

    def fail(self, job: ClaimedJob, error_message: str) -> None:
        """Records training_failed and marks the job failed."""

    def cancel(self, job: ClaimedJob) -> None:
        """Ends a job whose cancellation was requested: training_failed event, state cancelled."""

    def requeue(self, job: ClaimedJob, reason: str) -> None:
        """Gives the job back, to be claimed again at once with the next attempt number."""

    def hand_back(self, job: ClaimedJob, reason: str) -> None:
        """Gives the job back because the service stops. The next claim has the next attempt number, as that fences,
        but the same `num_tries`."""
