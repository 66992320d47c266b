"""Routes of files: upload, list, read and delete them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from tandem.cluster.artifacts import FILES
from tandem.serve.api.auth import Caller, TrainCaller
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.wire.errors import HTTPValidationError
from tandem.serve.api.wire.paging import Order, Page
from tandem.serve.errors import BadRequestError, Problem
from tandem.serve.finetuning.api.bodies import refuse
from tandem.serve.finetuning.api.multipart import Upload, upload_body
from tandem.serve.finetuning.api.wire import File, FileDeleted
from tandem.serve.finetuning.data.lines import LineError, check_lines
from tandem.serve.finetuning.files import remove_unused
from tandem.serve.finetuning.store.store import FineTuningStore
from tandem.serve.jobs.blobs import stored

router = APIRouter(prefix="/files", tags=["fine-tuning"])
PURPOSE = "fine-tune"
PIECE_BYTES = 256 << 10
MIN_EXPIRY_S, MAX_EXPIRY_S = 3600, 30 * 24 * 3600
_FORM: dict[str, Any] = {
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file", "purpose"],
                        "properties": {
                            "file": {"type": "string", "format": "binary"},
                            "purpose": {"type": "string", "enum": [PURPOSE]},
                        },
                    }
                }
            },
        }
    },
    "responses": {422: {"model": HTTPValidationError}},
}


@router.post("", **_FORM)
async def create_file(
    caller: TrainCaller, upload: Annotated[Upload, Depends(upload_body)], services: ServicesDep
) -> File:
    """Store a file of training data: JSON Lines, one row per line. Once this returns, the file survives any crash."""
    return await run_in_threadpool(_add, upload, caller, services)


def _add(upload: Upload, caller: Caller, services: Services) -> File:
    """Raises BadRequestError."""
    if upload.filename is None:
        raise refuse("file", "the form has no file")
    purpose = upload.fields.get("purpose")
    if purpose != PURPOSE:
        raise refuse("purpose", f"must be {PURPOSE!r}: this service keeps files for fine-tuning only")
    expiry = _expiry(upload.fields)
    try:
        with open(upload.path, "rb") as file:
            check_lines(file)
    except LineError as error:
        raise BadRequestError([Problem(("body", "file"), str(error))], "invalid_file") from None
    store, now = FineTuningStore(services.store.database), services.store.database.now()
    id = f"file-{uuid.uuid4().hex}"
    with stored(
        services.artifacts, f"{FILES}/{id}.jsonl", partial(services.artifacts.put_blob_file, upload.path)
    ) as key:
        row = store.files.add(
            id,
            caller.entity,
            upload.filename[:255],
            PURPOSE,
            upload.num_bytes,
            key,
            now,
            None if expiry is None else now + expiry,
        )
    return File.of(row)


def _expiry(fields: dict[str, str]) -> timedelta | None:
    """Return how long the file stays. Raises BadRequestError, also for a field that isn't known."""
    known = {"purpose", "expires_after[anchor]", "expires_after[seconds]"}
    if unknown := sorted(fields.keys() - known):
        raise refuse(unknown[0], "isn't known here; leave it out")
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise refuse("expires_after.anchor", "must be 'created_at'")
    if not (seconds and seconds.isascii() and seconds.isdigit() and MIN_EXPIRY_S <= int(seconds[:12]) <= MAX_EXPIRY_S):
        raise refuse("expires_after.seconds", f"must be {MIN_EXPIRY_S} to {MAX_EXPIRY_S}")
    return timedelta(seconds=int(seconds))


@router.get("")
def list_files(
    caller: TrainCaller,
    services: ServicesDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Order = "desc",
    purpose: str | None = None,
) -> Page[File]:
    """List the entity's files by time of upload."""
    files = FineTuningStore(services.store.database).files
    rows = files.page(caller.entity, limit + 1, after, newest_first=order == "desc", purpose=purpose)
    return Page.of([File.of(row) for row in rows], limit)


@router.get("/{file_id}")
def get_file(file_id: str, caller: TrainCaller, services: ServicesDep) -> File:
    """Return a file's description."""
    return File.of(FineTuningStore(services.store.database).files.get(file_id, caller.entity))


@router.get("/{file_id}/content", response_class=StreamingResponse)
def get_file_content(file_id: str, caller: TrainCaller, services: ServicesDep) -> StreamingResponse:
    """Return a file's contents."""
    row = FineTuningStore(services.store.database).files.get(file_id, caller.entity)
    headers = {"content-length": str(row.num_bytes), "x-content-type-options": "nosniff"}
    contents = _pieces(services.artifacts.open_blob(row.blob_key))
    return StreamingResponse(contents, media_type="application/octet-stream", headers=headers)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(PIECE_BYTES):
            yield piece


@router.delete("/{file_id}")
def delete_file(file_id: str, caller: TrainCaller, services: ServicesDep) -> FileDeleted:
    """Delete a file. Open jobs that train on it keep its contents until they end."""
    store = FineTuningStore(services.store.database)
    store.files.delete(file_id, caller.entity)
    remove_unused(store, services.artifacts)
    return FileDeleted(id=file_id)
