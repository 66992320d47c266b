"""Routes of adapters: download that of a version, and import one as the model's next version."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from tandem.cluster.artifacts import ADAPTER_FILES
from tandem.cluster.engine.requests.headers import DIGEST_HEADER
from tandem.serve.adapters.archive import adapter_archive, adapter_file
from tandem.serve.adapters.importing import AdapterImport, OfferedAdapter
from tandem.serve.adapters.unpacking import unpacked
from tandem.serve.api.auth import Caller, TrainCaller
from tandem.serve.api.connection import IMPORTING, to_completion
from tandem.serve.api.downloads import download, repr_digest
from tandem.serve.api.idempotency import idempotency_key
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.wire.errors import HTTPValidationError
from tandem.serve.api.wire.requests import MAX_STEP
from tandem.serve.api.wire.responses import Version
from tandem.serve.api.wire.views import version_view
from tandem.serve.errors import InvalidRequestError, NotFoundError, Problem, StorageFullError, UnavailableError
from tandem.serve.ingest.request_body import BodyLimit, receive
from tandem.serve.jobs.storage import disk_shortage, storage_errors
from tandem.serve.names import quoted
from tandem.serve.store.tables.training import ModelRow

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/preview/models/{model_id}/versions", tags=["models"])
Step = Annotated[int, PathParameter(ge=0, le=MAX_STEP)]
TAR = "application/x-tar"
SENT_AS = (TAR, "application/tar", "application/octet-stream")
BASE_PATH_HEADER = "x-base-model-path"
"""The configured path of the base model, percent-encoded: a merged checkpoint needs its weights."""
_ANY_BYTES: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


@router.get("/{step}/adapter", response_class=Response, responses={200: {"content": {TAR: _ANY_BYTES}}})
@router.head("/{step}/adapter", response_class=Response, include_in_schema=False)
def get_adapter(request: Request, model_id: UUID, step: Step, caller: TrainCaller, services: ServicesDep) -> Response:
    """Return the adapter of a version as a tar archive of PEFT's files. Version 0 has one, too.

    An interrupted download continues with `Range` and `If-Range`. x-policy-digest, also the ETag, names the version.
    """
    version = _Asked.find(services, model_id, caller, step)
    with _stored_files():
        content = adapter_archive(services.artifacts, version.digest)
    name = {"content-disposition": f'attachment; filename="adapter-step{step}.tar"'}
    return download(request, content, version.digest, version.headers | name, TAR)


@router.get("/{step}/adapter/{file}", response_class=Response, responses={200: {"content": {"*/*": _ANY_BYTES}}})
@router.head("/{step}/adapter/{file}", response_class=Response, include_in_schema=False)
def get_adapter_file(
    request: Request, model_id: UUID, step: Step, file: str, caller: TrainCaller, services: ServicesDep
) -> Response:
    """Return adapter_config.json or adapter_model.safetensors of a version, in the same manner.

    Repr-Digest has the SHA-256 of the whole file.
    """
    version = _Asked.find(services, model_id, caller, step)
    if file not in ADAPTER_FILES:
        raise NotFoundError(
            f"An adapter has no file {quoted(file)}, only {' and '.join(ADAPTER_FILES)}.", "file_not_found", "file"
        )
    with _stored_files():
        content, sha256 = adapter_file(services.artifacts, version.digest, file)
    headers = version.headers | {"repr-digest": repr_digest(sha256)}
    media_type = "application/json" if file.endswith(".json") else "application/octet-stream"
    return download(request, content, version.digest, headers, media_type)


@dataclass(frozen=True)
class _Asked:
    digest: str
    headers: dict[str, str]

    @classmethod
    def find(cls, services: Services, model_id: UUID, caller: Caller, step: int) -> _Asked:
        model = services.store.models.get(str(model_id), caller.entity)
        digest = services.store.versions.get(model.id, caller.entity, step).digest
        headers = {DIGEST_HEADER: digest}
        if model.base_model in services.base_models:  # it may no longer be configured
            headers[BASE_PATH_HEADER] = quote(services.config.base_model(model.base_model).path, safe="/:._-")
        return cls(digest, headers)


@contextmanager
def _stored_files() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        logger.error("The files of an adapter can't be read", exc_info=True)
        raise UnavailableError(
            "The artifact store can't give the files of this adapter. Try again in a moment.",
            "artifact_store_unavailable",
        ) from error


@router.post(
    "",
    openapi_extra={
        "requestBody": {"content": dict.fromkeys((TAR, "application/octet-stream"), _ANY_BYTES), "required": True}
    },
    responses={422: {"model": HTTPValidationError}},
)
async def import_adapter(
    request: Request,
    model_id: UUID,
    caller: TrainCaller,
    services: ServicesDep,
    step: Annotated[int | None, Query(ge=1, le=MAX_STEP)] = None,
) -> Version:
    """Import an adapter as the model's next version: a tar archive of adapter_config.json and
    adapter_model.safetensors.

    It must have the model's LoRA settings. It is loaded by learners and engines before this returns, and has no
    optimizer state. `step`: a later step than the next one. The optional header `Idempotency-Key` makes retries safe;
    without it, the content from which the newest version was imported makes no second version.

    While a job that has begun is open this is a 409: versions stay in one line. Queued jobs start from the import.
    """
    key = idempotency_key(request)
    model = await run_in_threadpool(services.store.models.get, str(model_id), caller.entity)
    kind = request.headers.get("content-type", TAR).partition(";")[0].strip().lower()
    if kind not in SENT_AS:
        message = f"Content-Type must be {TAR}, a tar archive of {' and '.join(ADAPTER_FILES)}"
        raise InvalidRequestError([Problem(("header", "Content-Type"), message)])
    with storage_errors():
        archive = await run_in_threadpool(_spool, services)
    try:
        with storage_errors():
            await _receive(request, services, archive)
        work = partial(_import, services, model, archive, key, step)
        return await to_completion(request, work, IMPORTING)
    finally:
        archive.unlink(missing_ok=True)


def _spool(services: Services) -> Path:
    if shortage := disk_shortage(services.artifacts, services.config.limits):
        raise StorageFullError(shortage, "disk_full")
    return services.artifacts.spool_dir / f"{uuid.uuid4()}.tar"


async def _receive(request: Request, services: Services, archive: Path) -> None:
    limit = BodyLimit(services.config.limits.max_adapter_bytes, "limits.max_adapter_bytes")
    with open(archive, "wb") as file:
        await receive(request, limit, services.config.deadlines.receive_s, file.write)


def _import(
    services: Services,
    model: ModelRow,
    archive: Path,
    key: str | None,
    step: int | None,
    check_connected: Callable[[], None],
) -> Version:
    preparation, trials = services.preparation, services.trials
    importing = AdapterImport(services.store, services.artifacts, services.config, preparation.import_adapter, trials)
    with ExitStack() as stack:
        with storage_errors():
            files = stack.enter_context(unpacked(archive, services.artifacts.spool_dir))
        return version_view(importing.accept(OfferedAdapter(model, files, key, step), check_connected))
