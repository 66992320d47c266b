"""Builds responses from the store's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tandem.rl.settings import LoraSettings
from tandem.serve.api.wire.paging import numbered_cursor
from tandem.serve.api.wire.responses import (
    ApiKey,
    Checkpoint,
    Dataset,
    InferenceModel,
    LogEntry,
    Lora,
    Model,
    TrainingJob,
    TrainingJobEvent,
    Version,
)
from tandem.serve.names import DATASET_SCHEME
from tandem.serve.store.tables.training import ApiKeyRow, DatasetRow, EventRow, JobRow, LogRow, ModelRow, VersionRow

NOT_TRAINED = ("nothing_trained", "partly_trained")
"""The warnings whose counts are trajectories that don't train."""
UNTRAINABLE = ("untrainable_tokens",)
"""The warnings whose counts are sampled tokens that can't train."""
TRAINED = {
    "rl": {
        "groups": "num_trained_groups",
        "trajectories": "num_trained_trajectories",
        "sequences": "num_sequences",
        "tokens": "num_trained_tokens",
    },
    "sft": {"batches": "num_sequences", "trajectories": "num_trajectories", "tokens": "num_trainable_tokens"},
    "dpo": {"pairs": "num_pairs", "sequences": "num_sequences", "tokens": "num_trained_tokens"},
}
"""The counts of a job by kind, and their names in its training_started event."""


def model_view(
    row: ModelRow,
    step: int,
    lora: LoraSettings | None = None,
    imported_step: int | None = None,
    client_run: str | None = None,
) -> Model:
    """`lora`: its settings. `imported_step`: of its newest version that was imported. `client_run`: that trains it."""
    origin = {"kind": "fork", **row.origin} if row.origin else None
    if origin is None and client_run is not None:
        origin = {"kind": "run", "run": client_run}
    if origin is None and imported_step is not None:
        origin = {"kind": "import", "step": imported_step}
    return Model(
        id=row.id,
        entity=row.entity,
        project=row.project,
        name=row.name,
        base_model=row.base_model,
        run_id=None,
        step=step,
        created_at=row.created_at,
        lora=None if lora is None else Lora.model_validate(lora.model_dump()),
        origin=origin,
    )


def inference_model_view(row: ModelRow) -> InferenceModel:
    return InferenceModel(id=row.path, created=int(row.created_at.timestamp()), owned_by=row.entity)


def version_view(row: VersionRow) -> Version:
    id = numbered_cursor(row.model_id, row.step)
    return Version(id=id, step=row.step, digest=row.digest, created_at=row.created_at)


def checkpoint_view(row: VersionRow) -> Checkpoint:
    return Checkpoint(
        **version_view(row).model_dump(),
        origin=row.origin,
        metrics=row.metrics,
        has_optimizer=row.optimizer_kind is not None and row.optimizer_expired_at is None and row.retired_at is None,
        retired_at=row.retired_at,
        kept_at=row.kept_at,
    )


def initial_checkpoint_view(model: ModelRow, digest: str) -> Checkpoint:
    """Return the view of version 0, which has no row."""
    id = numbered_cursor(model.id, 0)
    return Checkpoint(id=id, step=0, metrics={}, digest=digest, created_at=model.created_at, has_optimizer=False)


def dataset_view(row: DatasetRow) -> Dataset:
    return Dataset(
        id=row.id,
        url=f"{DATASET_SCHEME}{row.digest}",
        digest=row.digest,
        rows=row.num_rows,
        bytes=row.num_bytes,
        ignored_fields=row.ignored_fields,
        created_at=row.created_at,
    )


def job_view(row: JobRow, noted: Sequence[EventRow]) -> TrainingJob:
    """`noted`: the job's training_started and warnings."""
    started = next((event.data for event in noted if event.type == "training_started"), None)
    warnings = [event.data for event in noted if event.type == "warning"]
    columns = {name: getattr(row, name) for name in TrainingJob.model_fields if hasattr(row, name)}
    return TrainingJob(
        **columns,
        trained=None if started is None else _trained(row.kind, started),
        not_trained=_counts(warnings, NOT_TRAINED),
        retokenised_tokens=None if started is None else started.get("num_retokenised_tokens"),
        untrainable_tokens=_counts(warnings, UNTRAINABLE),
        warnings=[str(warning["message"]) for warning in warnings],
        options={name: value for name, value in row.config.items() if value is not None},
    )


def _counts(warnings: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> dict[str, int]:
    """Return the counts of the first warning of these kinds, {} without one."""
    return next((dict(warning["counts"]) for warning in warnings if warning.get("kind") in kinds), {})


def _trained(kind: str, started: Mapping[str, Any]) -> dict[str, int] | None:
    """Return the counts of a training_started event; None for that of an older release, which had only some."""
    names = TRAINED.get(kind, {})
    if not names or any(name not in started for name in names.values()):
        return None
    return {name: started[of_event] for name, of_event in names.items()}


def event_view(row: EventRow) -> TrainingJobEvent:
    id = numbered_cursor(row.job_id, row.seq)
    return TrainingJobEvent.model_validate({"id": id, "type": row.type, "data": row.data, "created_at": row.created_at})


def log_view(row: LogRow) -> LogEntry:
    return LogEntry.model_validate(row, from_attributes=True)


def key_view(row: ApiKeyRow) -> ApiKey:
    return ApiKey.model_validate(row, from_attributes=True)
