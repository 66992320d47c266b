"""Builds responses from the store's rows."""

from __future__ import annotations

from tandem.serve.api.wire.paging import numbered_cursor
from tandem.serve.api.wire.responses import (
    ApiKey,
    Checkpoint,
    InferenceModel,
    LogEntry,
    Model,
    TrainingJob,
    TrainingJobEvent,
    Version,
)
from tandem.serve.store.tables import ApiKeyRow, EventRow, JobRow, LogRow, ModelRow, VersionRow


def model_view(row: ModelRow, step: int) -> Model:
    return Model(
        id=row.id,
        entity=row.entity,
        project=row.project,
        name=row.name,
        base_model=row.base_model,
        run_id=None,
        step=step,
        created_at=row.created_at,
    )


def inference_model_view(row: ModelRow) -> InferenceModel:
    return InferenceModel(id=row.path, created=int(row.created_at.timestamp()), owned_by=row.entity)


def version_view(row: VersionRow) -> Version:
    id = numbered_cursor(row.model_id, row.step)
    return Version(id=id, step=row.step, digest=row.digest, created_at=row.created_at)


def checkpoint_view(row: VersionRow) -> Checkpoint:
    return Checkpoint(**version_view(row).model_dump(), metrics=row.metrics)


def job_view(row: JobRow) -> TrainingJob:
    return TrainingJob.model_validate(row, from_attributes=True)


def event_view(row: EventRow) -> TrainingJobEvent:
    id = numbered_cursor(row.job_id, row.seq)
    return TrainingJobEvent.model_validate({"id": id, "type": row.type, "data": row.data, "created_at": row.created_at})


def log_view(row: LogRow) -> LogEntry:
    return LogEntry.model_validate(row, from_attributes=True)


def key_view(row: ApiKeyRow) -> ApiKey:
    return ApiKey.model_validate(row, from_attributes=True)
