"""Files of artifacts, behind signed URLs: the wandb package sends no API key with them."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from tandem.cluster.artifacts import ADAPTER_FILES
from tandem.cluster.artifacts import UPLOADS as UPLOAD_BLOBS
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.errors import InvalidRequestError, Problem, StorageFullError
from tandem.serve.ingest.request_body import BodyLimit, receive
from tandem.serve.jobs.blobs import delete_blobs, stored
from tandem.serve.jobs.storage import disk_shortage, storage_errors
from tandem.serve.store.uploads.wandb import StoredFile
from tandem.serve.wandb.addresses import signed_urls
from tandem.serve.wandb.answers import MANIFEST_NAME, artifact_row_id, manifest_json
from tandem.serve.wandb.library import Library
from tandem.serve.wandb.signed_urls import DOWNLOADS, UPLOADS, Grant
from tandem.serve.wandb.sources import CHUNK_BYTES
from tandem.serve.wandb.uploads import manifest_entries

MAX_MANIFEST_BYTES = 1 << 20
router = APIRouter(include_in_schema=False)


@router.put(f"{UPLOADS}/{{token}}")
async def upload(token: str, request: Request, services: ServicesDep) -> Response:
    """Store a file of an artifact, or take its manifest. The bytes must have the MD5 for which the URL was made."""
    grant = await run_in_threadpool(lambda: signed_urls(request, services.store).grant(token, "write"))
    receive_part = _receive_manifest if grant.name == MANIFEST_NAME else _receive_file
    await receive_part(grant, request, services)
    return Response()


@router.get(f"{DOWNLOADS}/{{token}}")
def download(token: str, request: Request, services: ServicesDep) -> Response:
    """Return a file of an artifact, or its manifest."""
    grant = signed_urls(request, services.store).grant(token, "read")
    source = Library(services.store, services.artifacts, grant.entity).by_id(grant.artifact)
    if grant.name == MANIFEST_NAME:
        return JSONResponse(manifest_json(source))
    file, headers = source.open(grant.name), {"x-content-type-options": "nosniff"}
    if isinstance(file, Path):
        return FileResponse(file, media_type="application/octet-stream", headers=headers)
    headers["content-length"] = str(source.sizes[grant.name])
    return StreamingResponse(_chunks(file), media_type="application/octet-stream", headers=headers)


async def _receive_manifest(grant: Grant, request: Request, services: Services) -> None:
    body = bytearray()
    limit = BodyLimit(MAX_MANIFEST_BYTES, "the manifest of an artifact with few files")
    await receive(request, limit, services.config.deadlines.receive_s, body.extend, may_block=False)
    _check_md5(grant, hashlib.md5(body))
    try:
        manifest: Any = json.loads(body)
    except ValueError:
        manifest = None
    entries, row_id = manifest_entries(manifest), artifact_row_id(grant.artifact)
    await run_in_threadpool(services.store.wandb.set_manifest, row_id, grant.entity, entries)


async def _receive_file(grant: Grant, request: Request, services: Services) -> None:
    setting = "max_adapter_bytes" if grant.name in ADAPTER_FILES else "max_dataset_bytes"
    limit = BodyLimit(getattr(services.config.limits, setting), f"limits.{setting}")
    if shortage := await run_in_threadpool(disk_shortage, services.artifacts, services.config.limits):
        raise StorageFullError(shortage, "disk_full")
    spool, md5, sha256 = services.artifacts.spool_dir / str(uuid.uuid4()), hashlib.md5(), hashlib.sha256()
    try:
        with spool.open("wb") as file:

            def write(piece: bytes) -> None:
                md5.update(piece)
                sha256.update(piece)
                file.write(piece)

            with storage_errors():
                await receive(request, limit, services.config.deadlines.receive_s, write)
                num_bytes = file.tell()
                file.flush()
        _check_md5(grant, md5)
        found = StoredFile(f"{UPLOAD_BLOBS}/{uuid.uuid4()}", sha256.hexdigest(), num_bytes)
        await run_in_threadpool(_store, grant, services, spool, found)
    finally:
        spool.unlink(missing_ok=True)


def _store(grant: Grant, services: Services, spool: Path, found: StoredFile) -> None:
    def write(key: str) -> None:
        services.artifacts.put_blob_file(spool, key)

    with stored(services.artifacts, found.blob_key, write):
        row = services.store.wandb.store_file(artifact_row_id(grant.artifact), grant.entity, grant.name, found)
    if row.blob_key != found.blob_key:  # the client has sent it twice
        delete_blobs(services.artifacts, [found.blob_key])


def _check_md5(grant: Grant, md5: Any) -> None:
    """Raises InvalidRequestError."""
    if base64.b64encode(md5.digest()).decode() != grant.md5:
        message = f"the bytes of {grant.name} don't have the MD5 that was declared for them; send the file again"
        raise InvalidRequestError([Problem(("body",), message)], "md5_mismatch")


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
