"""Reads large bodies into a file: trajectory groups, of which only the envelope is parsed here, and JSON lines."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from fastapi import Request
from pydantic_core import from_json
from starlette.concurrency import run_in_threadpool

from tandem.cluster.payloads.json_splitting import JsonSplitter
from tandem.serve.api.auth import Caller, TrainCaller
from tandem.serve.api.bodies.json_body import parse
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.wire.requests import RequestBody
from tandem.serve.errors import InvalidRequestError, Problem, StorageFullError
from tandem.serve.ingest.request_body import BodyLimit, receive
from tandem.serve.ingest.spool import BodyFile, Spool
from tandem.serve.jobs.storage import disk_shortage, storage_errors

T = TypeVar("T")
B = TypeVar("B", bound=RequestBody)

LARGE_BYTES = 1 << 20
_PLACE = re.compile(r"at line (\d+) column (\d+)")


@dataclass(frozen=True)
class Payload(Generic[T]):
    """A received body. Its trajectory groups are in the spool, unparsed; in `envelope` they are an empty list."""

    envelope: T
    spool: Spool


Begun = Callable[[Services, Caller, str, Path], object]
"""Called with the model's id and the file of a large body while it arrives, in a thread; raises nothing."""


def payload_body(
    model: type[B], begun: Begun | None = None
) -> Callable[[Request, Services, Caller], AsyncIterator[Payload[B]]]:
    """Return a dependency that gives the body with a valid envelope, and removes its file unless it became a blob.

    `begun` is called if the body begins with the model's id. The dependency raises the errors of `receive`,
    StorageFullError, and InvalidRequestError for a bad envelope.
    """

    async def read(request: Request, services: ServicesDep, caller: TrainCaller) -> AsyncIterator[Payload[B]]:
        limit = BodyLimit(services.config.limits.max_payload_bytes, "limits.max_payload_bytes")
        with storage_errors():
            spool = await run_in_threadpool(_open_spool, services)
        waits = begun is not None

        def write(piece: bytes) -> None:
            nonlocal waits
            spool.write(piece)
            if waits and spool.num_bytes >= LARGE_BYTES:
                waits = False
                if begun is not None and (model_id := _first_model_id(bytes(spool.json.envelope))):
                    begun(services, caller, model_id, spool.path)

        try:
            with storage_errors():
                await receive(request, limit, services.config.deadlines.receive_s, write)
                await run_in_threadpool(spool.finish)
            yield Payload(await run_in_threadpool(_parse_envelope, model, spool.json), spool)
        finally:
            spool.discard()

    return read


async def lines_body(request: Request, services: ServicesDep) -> AsyncIterator[BodyFile]:
    """A dependency: the body as a file, which is removed unless it became a blob.

    It raises the errors of `receive`, and StorageFullError.
    """
    limit = BodyLimit(services.config.limits.max_dataset_bytes, "limits.max_dataset_bytes")
    with storage_errors():
        file = await run_in_threadpool(_open_lines, services)
    try:
        with storage_errors():
            await receive(request, limit, services.config.deadlines.receive_s, file.write)
            await run_in_threadpool(file.finish)
        yield file
    finally:
        file.discard()


def _first_model_id(envelope: bytes) -> str | None:
    """Return the model's id of an envelope that is cut off, if it is there."""
    try:
        found = from_json(envelope, allow_partial=True)
    except ValueError:
        return None
    id = found.get("model_id") if isinstance(found, dict) else None
    return id if isinstance(id, str) else None


def _open_lines(services: Services) -> BodyFile:
    return BodyFile(_spool_dir(services), ".jsonl.zst")


def _open_spool(services: Services) -> Spool:
    return Spool(_spool_dir(services))


def _spool_dir(services: Services) -> Path:
    if shortage := disk_shortage(services.artifacts, services.config.limits):
        raise StorageFullError(shortage, "disk_full")
    return services.artifacts.spool_dir


def _parse_envelope(model: type[B], json: JsonSplitter) -> B:
    """Raises InvalidRequestError."""
    try:
        envelope = parse(model.model_validate_json, bytes(json.envelope))
    except InvalidRequestError as error:
        raise InvalidRequestError([_in_body(problem, json) for problem in error.problems]) from None
    if json.num_arrays > 1:
        raise InvalidRequestError([Problem(("body",), "has a key more than once; send each key once")])
    return envelope


def _in_body(problem: Problem, json: JsonSplitter) -> Problem:
    """Convert a position in the text of the envelope to a position in the body."""
    place = _PLACE.search(problem.msg) if problem.type == "json_invalid" else None
    offset = json.offset(*map(int, place.groups())) if place else None
    return problem if offset is None else replace(problem, msg=_PLACE.sub(f"after {offset} bytes", problem.msg))
