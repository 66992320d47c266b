"""Why a job waits, in one sentence, from what the store and the coordinator know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tandem.serve.api.services import CoordinatorStatus
from tandem.serve.api.wire.queue import Cause
from tandem.serve.store.tables.training import JobRow
from tandem.serve.store.training.queue import QueuePlace


@dataclass(frozen=True)
class Reason:
    """A cause as a word, and the sentence for people."""

    cause: Cause
    sentence: str


@dataclass(frozen=True)
class Limits:
    """Of the base model. `jobs_at_once` is None if the service has no such base model any more."""

    jobs_at_once: int | None


Statuses = Mapping[str, CoordinatorStatus] | None
"""By base model; None if the coordinator doesn't answer."""


def reason_to_wait(place: QueuePlace, statuses: Statuses, limits: Limits, now: datetime, has_started: bool) -> Reason:
    """Return why the job doesn't run yet, or its state if it does. `has_started`: it has a training_started event."""
    job = place.job
    if job.state == "running":
        return _running(job, statuses, place.model.base_model, now, has_started)
    if job.state != "queued":
        return Reason("ended", f"The job has ended: it {_ENDS[job.state]}.")
    return _of_base(place, statuses, limits) or _queued(place, statuses, limits, now)


_ENDS = {"succeeded": "succeeded", "failed": "failed", "cancelled": "was cancelled"}


def _running(job: JobRow, statuses: Statuses, base: str, now: datetime, has_started: bool) -> Reason:
    if job.lease_expires_at <= now:
        return Reason(
            "lease",
            f"Attempt {job.attempt} was lost: nothing has renewed its lease, which ran out at {_time(job)}. Attempt "
            f"{job.attempt + 1} begins as soon as the coordinator can take it.",
        )
    status = (statuses or {}).get(base)
    if status is not None and job.id not in status["running_jobs"]:
        return Reason(
            "lease",
            f"Attempt {job.attempt} was lost: the coordinator doesn't run it any more. Its lease runs out at "
            f"{_time(job)}; attempt {job.attempt + 1} begins then.",
        )
    if job.cancel_requested:
        return Reason("cancelling", "The job is being cancelled: it ends before its next gradient step.")
    if job.waiting_for:
        return Reason("learners", f"The job waits for learners: {job.waiting_for.rstrip('.')}.")
    if has_started:
        return Reason("trains", "The job trains.")
    if status is not None and not status["learners_running"]:
        return Reason("learners", "The job was claimed. Its data is being prepared, and the learners start.")
    return Reason("prepares", "The job was claimed. Its data is being prepared, or it waits for its turn to train.")


def _of_base(place: QueuePlace, statuses: Statuses, limits: Limits) -> Reason | None:
    """Return why no job of the base model is claimed, None if nothing keeps all of them."""
    base = place.model.base_model
    if limits.jobs_at_once is None:
        return Reason(
            "coordinator",
            f"This service has no base model {base} any more, so nothing runs its jobs. Its operator can add it to the "
            "configuration again; or cancel the job.",
        )
    if statuses is None:
        return Reason("coordinator", "The coordinator doesn't answer. The job waits until it is back.")
    if base not in statuses or not place.is_base_ready:
        return Reason("coordinator", f"The coordinator of {base} hasn't started yet. The job waits for it.")
    if statuses[base]["last_error"]:
        return Reason(
            "coordinator",
            f"The coordinator of {base} failed outside a job and tries again; its log has the cause.",
        )
    return None


def _queued(place: QueuePlace, statuses: Statuses, limits: Limits, now: datetime) -> Reason:
    if place.before_in_model:
        return _same_model(place.before_in_model, statuses, place.model.base_model, now)
    status = (statuses or {})[place.model.base_model]
    running, at_once = len(status["running_jobs"]), limits.jobs_at_once or 0
    if running >= at_once:
        learners = f" They wait for learners: {status['waiting_for'].rstrip('.')}." if status["waiting_for"] else ""
        return Reason(
            "learners" if status["waiting_for"] else "jobs_at_once",
            f"{running} jobs of other models run, as many as learners.jobs_at_once allows. This one starts when one of "
            f"them ends{_turn(place)}.{learners}",
        )
    again = f" Attempt {place.job.attempt} ended: {place.job.error}" if place.job.attempt and place.job.error else ""
    return Reason("starting", f"Nothing keeps the job: it starts in a moment.{again}")


def _same_model(before: Sequence[JobRow], statuses: Statuses, base: str, now: datetime) -> Reason:
    first, num_more = before[0], len(before) - 1
    more = f", and {num_more} more of this model {'is' if num_more == 1 else 'are'} before this one" if num_more else ""
    rule = "Jobs of one model run one at a time, in order of acceptance."
    if first.state == "queued":
        return Reason("same_model", f"Job {first.id} of the same model is queued before it{more}. {rule}")
    status = (statuses or {}).get(base)
    if first.lease_expires_at <= now or (status is not None and first.id not in status["running_jobs"]):
        return Reason(
            "lease",
            f"Job {first.id} of the same model has to begin again: its attempt {first.attempt} was lost, and its lease "
            f"runs out at {_time(first)}{more}. {rule}",
        )
    return Reason("same_model", f"Job {first.id} of the same model runs{more}. {rule}")


def _turn(place: QueuePlace) -> str:
    number = place.num_own_before + place.num_others_before
    if number == 0:
        return ""
    return " and the job before it has started" if number == 1 else f" and the {number} jobs before it have started"


def _time(job: JobRow) -> str:
    return f"{job.lease_expires_at:%H:%M:%S} UTC"
