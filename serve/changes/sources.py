"""Changes of training jobs, their events, models and versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tandem.serve.changes.change import Change
from tandem.serve.store.changes import AlertMark, Changes, EventMark, JobMark, ModelMark

MAX_VERSIONS = 20
"""Versions of one model that are reported together; the newest ones."""


class JobSource:
    """Messages `job` (a job is new, or its state has changed) and `event` (it has an event more)."""

    def __init__(self, changes: Changes):
        self._changes = changes
        self._seen: Mapping[str, JobMark] | None = None
        self._newest = 0  # the number of the newest job seen

    def look(self) -> list[Change]:
        """See `Source.look`."""
        before = self._seen
        known = before or {}
        now = self._changes.jobs([job.id for job in known.values() if job.is_open])
        growing = {job.id: _num_events(known, job) for job in now.values() if self._is_changed(known, job)}
        grown = {id: seq for id, seq in growing.items() if now[id].num_events > seq}
        events = self._changes.events(grown) if before is not None and grown else []
        events = [event for event in events if event.seq <= now[event.job_id].num_events]  # the rest comes next time
        found = [] if before is None else list(self._messages(known, now, events))
        self._seen = now
        self._newest = max([self._newest, *(job.number for job in now.values())])
        return found

    def _is_changed(self, known: Mapping[str, JobMark], job: JobMark) -> bool:
        """Return whether to report a job. One that isn't known and has ended is new only if its number is."""
        before = known.get(job.id)
        return before != job if before else job.is_open or job.number > self._newest

    def _messages(
        self, known: Mapping[str, JobMark], now: Mapping[str, JobMark], events: list[EventMark]
    ) -> Iterator[Change]:
        of_job: dict[str, list[EventMark]] = {}
        for event in events:
            of_job.setdefault(event.job_id, []).append(event)
        for job in sorted(now.values(), key=lambda job: job.number):
            if not self._is_changed(known, job):
                continue
            for event in of_job.get(job.id, ()):
                data = {"job_id": job.id, "model_id": job.model_id, "seq": event.seq, "type": event.type}
                yield Change(job.entity, "event", data, needs_train=True)
            before = known.get(job.id)
            if before is None or _state(before) != _state(job):
                yield Change(job.entity, "job", _job_data(job), needs_train=True)


class ModelSource:
    """Messages `model` (created or deleted) and `version` (a model has a new version)."""

    def __init__(self, changes: Changes):
        self._changes = changes
        self._seen: Mapping[str, ModelMark] | None = None

    def look(self) -> list[Change]:
        """See `Source.look`."""
        now, before = self._changes.models(), self._seen
        self._seen = now
        return [] if before is None else [*_created(before, now), *_versions(before, now), *_deleted(before, now)]


class AlertSource:
    """Message `alert`: one has opened, was acknowledged, or is over. Alerts of the whole service have no message."""

    def __init__(self, changes: Changes):
        self._changes = changes
        self._seen: Mapping[str, AlertMark] | None = None

    def look(self) -> list[Change]:
        """See `Source.look`."""
        before = self._seen
        known = before or {}
        now = self._changes.alerts([id for id, alert in known.items() if alert.is_open])
        self._seen = now
        if before is None:
            return []
        changed = [alert for id, alert in now.items() if known.get(id) != alert]
        return [Change(alert.entity, "alert", _alert_data(alert), needs_train=True) for alert in changed]


def _alert_data(alert: AlertMark) -> dict[str, object]:
    state = "open" if alert.is_open else "resolved"
    return {"id": alert.id, "kind": alert.kind, "state": state, "acknowledged": alert.is_acknowledged}


def _created(before: Mapping[str, ModelMark], now: Mapping[str, ModelMark]) -> Iterator[Change]:
    for id in now.keys() - before.keys():
        yield Change(now[id].entity, "model", {"id": id, "state": "created"})


def _deleted(before: Mapping[str, ModelMark], now: Mapping[str, ModelMark]) -> Iterator[Change]:
    for id in before.keys() - now.keys():
        yield Change(before[id].entity, "model", {"id": id, "state": "deleted"})


def _versions(before: Mapping[str, ModelMark], now: Mapping[str, ModelMark]) -> Iterator[Change]:
    for id, model in now.items():
        first = before[id].next_step if id in before else 1
        for step in range(max(first, model.next_step - MAX_VERSIONS), model.next_step):
            yield Change(model.entity, "version", {"model_id": id, "step": step})


def _num_events(known: Mapping[str, JobMark], job: JobMark) -> int:
    before = known.get(job.id)
    return before.num_events if before else 0


def _state(job: JobMark) -> tuple[object, ...]:
    """Return the part of a job whose change is a message of its own, beside its events."""
    return job.state, job.attempt, job.step, job.waiting_for, job.cancel_requested


def _job_data(job: JobMark) -> dict[str, object]:
    return {
        "id": job.id,
        "model_id": job.model_id,
        "kind": job.kind,
        "state": job.state,
        "attempt": job.attempt,
        "step": job.step,
        "num_events": job.num_events,
        "num_gradient_steps": job.num_gradient_steps,
    }
