"""Receives bodies full of trajectory groups into files, in memory that doesn't grow with them."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import zstandard
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from tandem.cluster.payloads.json_splitting import CHUNK_BYTES, JsonSplitter
from tandem.serve.api.json_body import parse
from tandem.serve.api.schemas import RequestBody
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.errors import Fault, InvalidRequestError, StorageFullError, TooLargeError
from tandem.serve.ingest.request_body import BodyLimit, receive
from tandem.serve.jobs.payloads import disk_fault, storage_errors

T = TypeVar("T")
B = TypeVar("B", bound=RequestBody)

MAX_ENVELOPE_BYTES = 1 << 20
"""Of a body without the contents of its arrays; ids and options take a few kilobytes."""
COMPRESSION_LEVEL = 1  # a third of the time of the default, and about the same size
_PLACE = re.compile(r"at line (\d+) column (\d+)")


class Spool:
    """A file that grows into a blob: what is written to it is hashed, packed (zstd), and its JSON envelope kept.

    One thread at a time may `write` and `finish`; `discard` may come at any moment.
    """

    def __init__(self, directory: Path):
        self.path = directory / f"{uuid.uuid4()}.json.zst"
        self.json = JsonSplitter(with_elements=False)
        self._hash = hashlib.sha256()
        self._compressor = zstandard.ZstdCompressor(COMPRESSION_LEVEL).compressobj()
        self._file = open(self.path, "wb")

    @property
    def sha256(self) -> str:
        """Of the unpacked body."""
        return self._hash.hexdigest()

    def write(self, piece: bytes) -> None:
        """Raises OSError, and TooLargeError for an envelope that no honest body has."""
        for start in range(0, len(piece), CHUNK_BYTES):
            chunk = piece[start : start + CHUNK_BYTES]
            self._hash.update(chunk)
            self._file.write(self._compressor.compress(chunk))
            self.json.feed(chunk)
            if len(self.json.envelope) > MAX_ENVELOPE_BYTES:
                raise TooLargeError(
                    f"The body has more than {MAX_ENVELOPE_BYTES} bytes outside of its trajectory groups. "
                    "Send nothing but what the route takes.",
                    "body_too_large",
                )

    def finish(self) -> None:
        """Ends the file. Raises OSError."""
        self._file.write(self._compressor.flush())
        self._file.close()

    def discard(self) -> None:
        """Removes the file, unless it has become a blob."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # of what was still to be written
            self._file.close()


@dataclass(frozen=True)
class Payload(Generic[T]):
    """A received body. Its trajectory groups are in the spool, unread; in `envelope` they are an empty list."""

    envelope: T
    spool: Spool


def payload_body(model: type[B]) -> Callable[[Request, Services], AsyncIterator[Payload[B]]]:
    """A dependency: the body, its envelope checked. When the request ends, nothing is left but what became a blob.

    Raises what `receive` does, StorageFullError, and InvalidRequestError for a bad envelope.
    """

    async def read(request: Request, services: ServicesDep) -> AsyncIterator[Payload[B]]:
        limit = BodyLimit(services.config.limits.max_payload_bytes, "limits.max_payload_bytes")
        with storage_errors():
            spool = await run_in_threadpool(_open_spool, services)
        try:
            with storage_errors():
                await receive(request, limit, services.config.deadlines.receive_s, spool.write)
                await run_in_threadpool(spool.finish)
            yield Payload(await run_in_threadpool(_parse_envelope, model, spool.json), spool)
        finally:
            spool.discard()

    return read


def _open_spool(services: Services) -> Spool:
    if fault := disk_fault(services):
        raise StorageFullError(fault, "disk_full")
    return Spool(services.artifacts.spool_dir)


def _parse_envelope(model: type[B], json: JsonSplitter) -> B:
    """Raises InvalidRequestError."""
    try:
        envelope = parse(model.model_validate_json, bytes(json.envelope))
    except InvalidRequestError as error:
        raise InvalidRequestError([_in_body(fault, json) for fault in error.faults]) from None
    if json.num_arrays > 1:
        raise InvalidRequestError([Fault(("body",), "has a key more than once; send each key once")])
    return envelope


def _in_body(fault: Fault, json: JsonSplitter) -> Fault:
    """Places in the text of the envelope become places in the body."""
    place = _PLACE.search(fault.msg) if fault.type == "json_invalid" else None
    offset = json.offset(*map(int, place.groups())) if place else None
    return fault if offset is None else replace(fault, msg=_PLACE.sub(f"after {offset} bytes", fault.msg))
