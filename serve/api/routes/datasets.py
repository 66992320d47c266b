"""Routes of datasets: upload, list, delete."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request

from tandem.serve.api.auth import Caller, TrainCaller
from tandem.serve.api.bodies.payload_body import lines_body
from tandem.serve.api.connection import to_completion
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.wire.errors import HTTPValidationError
from tandem.serve.api.wire.paging import Limit, Order, Page
from tandem.serve.api.wire.responses import Dataset, DatasetDeleted
from tandem.serve.api.wire.views import dataset_view
from tandem.serve.ingest.spool import BodyFile
from tandem.serve.jobs.blobs import delete_blobs
from tandem.serve.jobs.datasets import store_dataset

router = APIRouter(prefix="/preview/datasets", tags=["datasets"])
_LINES = {"application/jsonl": {"schema": {"type": "string"}}}


@router.post(
    "",
    openapi_extra={"requestBody": {"content": _LINES, "required": True}},
    responses={422: {"model": HTTPValidationError}},
)
async def create_dataset(
    request: Request,
    caller: TrainCaller,
    file: Annotated[BodyFile, Depends(lines_body)],
    services: ServicesDep,
) -> Dataset:
    """Store JSON lines for supervised training, each an object with `messages` and, if there are any, `tools`.

    A fault is rejected with its line and field. The same content again returns the dataset that exists.
    """
    return await to_completion(request, partial(_store, file, caller, services))


def _store(file: BodyFile, caller: Caller, services: Services, check_connected: Callable[[], None]) -> Dataset:
    count_rows = services.preparation.count_rows
    return dataset_view(
        store_dataset(services.store, services.artifacts, file, caller.entity, count_rows, check_connected)
    )


@router.get("")
def list_datasets(
    caller: TrainCaller,
    services: ServicesDep,
    after: UUID | None = None,
    limit: Limit = 20,
    order: Order = "desc",
) -> Page[Dataset]:
    """List the entity's datasets by time of upload, by default the newest first."""
    rows = services.store.datasets.page(caller.entity, limit + 1, str(after) if after else None, order == "desc")
    return Page.of([dataset_view(row) for row in rows], limit)


@router.get("/{dataset_id}")
def get_dataset(dataset_id: UUID, caller: TrainCaller, services: ServicesDep) -> Dataset:
    """Return a dataset."""
    return dataset_view(services.store.datasets.get(str(dataset_id), caller.entity))


@router.delete("/{dataset_id}")
def delete_dataset(dataset_id: UUID, caller: TrainCaller, services: ServicesDep) -> DatasetDeleted:
    """Delete a dataset that no queued or running job uses."""
    row = services.store.datasets.delete(str(dataset_id), caller.entity)
    delete_blobs(services.artifacts, [row.blob_key])
    return DatasetDeleted(id=row.id)
