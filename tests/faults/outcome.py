"""Jobs and versions of a model as the service reports them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from patient_client import PatientClient

TERMINAL = ("training_ended", "training_failed")


@dataclass(frozen=True)
class Event:
    seq: int
    type: str
    at: float


@dataclass(frozen=True)
class Job:
    id: str
    state: str
    step: int | None
    error: str | None
    created_at: float
    events: tuple[Event, ...]

    @property
    def ended_at(self) -> float | None:
        return next((event.at for event in self.events if event.type in TERMINAL), None)


@dataclass(frozen=True)
class Version:
    step: int
    digest: str
    at: float


@dataclass(frozen=True)
class ModelOutcome:
    """All jobs of a model in order of acceptance, and all its versions by step."""

    model_id: str
    jobs: tuple[Job, ...]
    versions: tuple[Version, ...]


Blame = Literal["lost", "doubled", "failed"]


@dataclass
class Findings:
    """Broken promises, a sentence each, and the jobs concerned."""

    sentences: list[str] = field(default_factory=list)
    blamed: dict[Blame, set[str]] = field(default_factory=lambda: {"lost": set(), "doubled": set(), "failed": set()})

    def add(self, sentence: str, blame: Blame | None = None, job: str = "") -> None:
        self.sentences.append(sentence)
        if blame:
            self.blamed[blame].add(job)


def read_outcome(client: PatientClient, model_id: str) -> ModelOutcome:
    listed = client.all_pages("/preview/training-jobs", model_id=model_id, order="asc")
    versions = client.all_pages(f"/preview/models/{model_id}/versions")
    return ModelOutcome(
        model_id,
        tuple(_job(job, client.all_pages(f"/preview/training-jobs/{job['id']}/events")) for job in listed),
        tuple(Version(v["step"], v["digest"], _time(v["created_at"])) for v in versions),
    )


def _job(job: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> Job:
    return Job(
        id=job["id"],
        state=job["state"],
        step=job["step"],
        error=job["error"],
        created_at=_time(job["created_at"]),
        events=tuple(Event(int(e["id"].rpartition(":")[2]), e["type"], _time(e["created_at"])) for e in events),
    )


def _time(written: str) -> float:
    return datetime.fromisoformat(written).timestamp()
