"""Bodies of forward_backward: received, checked, and journalled with their content as an artifact.

Everything after the last byte has arrived runs in a thread. torch is imported there, too: a process of the API loads
it with the first session of a client that may train.
"""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from fastapi import Request
from pydantic import TypeAdapter

from tandem.cluster.calls.call import PROTOBUF, CallKind
from tandem.serve.api.auth import Caller
from tandem.serve.api.bodies.json_body import parse
from tandem.serve.api.services import ServicesDep
from tandem.serve.api.wire.errors import HTTPValidationError
from tandem.serve.errors import InvalidRequestError, Problem, StorageFullError
from tandem.serve.ingest.request_body import BodyLimit, receive
from tandem.serve.jobs.blobs import stored
from tandem.serve.jobs.storage import disk_shortage
from tandem.serve.tinker.api.context import Tinker
from tandem.serve.tinker.api.submission import NO_SEQ, digest, place_of
from tandem.serve.tinker.wire.responses import Future

CALLS = "calls"
"""The folder of the artifacts."""
_OBJECT = TypeAdapter(dict[str, Any])
_WRITERS = ThreadPoolExecutor(8, "calls")
_NewCall = tuple[str, str, int, CallKind, str]
"""Entity, run, number, kind, and the hash of the content."""


@dataclass(frozen=True)
class DatumBody:
    """A body, decompressed."""

    content: bytes
    is_protobuf: bool
    forward_only: bool
    """Asked for by the route."""


async def datum_body(request: Request, services: ServicesDep) -> DatumBody:
    """A dependency: the body of forward_backward. Raises the errors of `receive`."""
    return await _received(request, services, forward_only=False)


async def forward_body(request: Request, services: ServicesDep) -> DatumBody:
    """A dependency: the body of forward. Raises the errors of `receive`."""
    return await _received(request, services, forward_only=True)


async def _received(request: Request, services: ServicesDep, forward_only: bool) -> DatumBody:
    config = services.config
    limit = BodyLimit(config.tinker.max_call_bytes, "tinker.max_call_bytes")
    content = bytearray()
    await receive(request, limit, config.deadlines.receive_s, content.extend, may_block=False)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return DatumBody(bytes(content), kind == PROTOBUF, forward_only)


def shown() -> dict[str, Any]:
    """Return the arguments of a route that document the body."""
    content = {
        PROTOBUF: {"schema": {"type": "string", "format": "binary"}},
        "application/json": {"schema": {"type": "object"}},
    }
    return {
        "openapi_extra": {"requestBody": {"content": content, "required": True}},
        "responses": {422: {"model": HTTPValidationError}},
    }


def journal(tinker: Tinker, caller: Caller, body: DatumBody) -> Future:
    """Check a call and journal it with its content.

    Raises InvalidRequestError for a body whose model and number can't be read. Other faults become the call's result.
    """
    found = _found(body)
    call = (caller.entity, found.model_id, found.seq, found.kind, found.sha256)
    known = tinker.store.calls.find(*call)
    request_id = known.request_id or _recorded(tinker, known.base_model, call, found)
    return Future(request_id=request_id, model_id=found.model_id)


def _recorded(tinker: Tinker, base_model: str | None, call: _NewCall, found: _Found) -> str:
    """Record a new call, and return its request id."""
    calls = tinker.store.calls
    if base_model is None:
        return calls.submit(*call, body_key=None, options={}, num_bytes=0)  # records why it isn't executed
    if found.fault is not None:
        return calls.submit_refused(*call, found.fault)
    try:
        return _with_content(tinker, base_model, call, found)
    except _RefusedError as refused:
        return calls.submit_refused(*call, str(refused))


class _RefusedError(Exception):
    """The content of a call is refused, for this reason."""


@dataclass(frozen=True)
class _Found:
    """A call whose model and number are known."""

    model_id: str
    seq: int
    kind: CallKind
    sha256: str
    message: Any = None
    """In protobuf; None with a fault."""
    content: bytes = b""
    """Of the message."""
    fault: str | None = None


def _found(body: DatumBody) -> _Found:
    """Raises InvalidRequestError."""
    from tandem.cluster.calls.wire.forward_backward import parsed
    from tandem.rl.datums.datum import DatumError
    from tandem.serve.tinker.api.json_datums import message_of_json

    try:
        if body.is_protobuf:
            return _of_message(parsed(body.content))
    except DatumError as error:
        raise InvalidRequestError([Problem(("body",), error.reason)]) from None
    told = parse(_OBJECT.validate_json, body.content)
    model_id, seq = place_of(told)
    try:
        return _of_message(message_of_json(body.content, body.forward_only))
    except DatumError as error:
        kind: CallKind = "forward" if body.forward_only else "forward_backward"
        return _Found(model_id, seq, kind, digest(told), fault=str(error))


def _of_message(message: Any) -> _Found:
    if message.seq_id < 1:
        raise InvalidRequestError([Problem(("body", "seq_id"), NO_SEQ)])
    content = message.SerializeToString(deterministic=True)  # a repeat may order its maps in another way
    kind: CallKind = "forward" if message.forward_only else "forward_backward"
    return _Found(message.model_id, message.seq_id, kind, sha256(content).hexdigest(), message, content)


def _fault(tinker: Tinker, base_model: str, message: Any) -> str | None:
    """Return why the content is refused, or None."""
    from tandem.cluster.calls.wire.forward_backward import forward_backward_of
    from tandem.rl.datums.datum import DatumError, check_call

    sizes = tinker.base_models.sizes(base_model)
    try:
        check_call(forward_backward_of(message).call, sizes.vocabulary, sizes.max_length)
    except DatumError as error:
        return str(error)
    return None


def _with_content(tinker: Tinker, base_model: str, call: _NewCall, found: _Found) -> str:
    """Journal a call, whose content is durable before its row. Return its request id. Raises _RefusedError."""
    artifacts, key = tinker.services.artifacts, f"{CALLS}/{uuid.uuid4()}"
    if shortage := disk_shortage(artifacts, tinker.services.config.limits):
        raise StorageFullError(shortage, "disk_full")

    def write_and_check(key: str) -> None:
        """Check the content while the disk works."""
        writing = _WRITERS.submit(artifacts.write_blob, key, found.content)
        try:
            fault = _fault(tinker, base_model, found.message)
        finally:
            wait([writing])
        writing.result()
        if fault is not None:
            raise _RefusedError(fault)

    with stored(artifacts, key, write_and_check):
        return tinker.store.calls.submit(*call, key, options={}, num_bytes=len(found.content))
