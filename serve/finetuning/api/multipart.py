"""Receives an uploaded file: a multipart body, of which the file goes to disk piece by piece."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.errors import BadRequestError, Problem, StorageFullError
from tandem.serve.ingest.request_body import BodyLimit, receive
from tandem.serve.jobs.storage import disk_shortage, storage_errors

MAX_FIELD_BYTES = 4096
MAX_FIELDS = 16
FILE = "file"


@dataclass
class Upload:
    """A received form: its fields, and its file on the disk."""

    path: Path
    filename: str | None = None
    """None while the form has no file."""
    num_bytes: int = 0
    fields: dict[str, str] = field(default_factory=dict)


async def upload_body(request: Request, services: ServicesDep) -> AsyncIterator[Upload]:
    """A dependency: the form of a request, whose file is removed unless it became a blob.

    Raises the errors of `receive`, StorageFullError, and BadRequestError for a body that isn't such a form.
    """
    form = await run_in_threadpool(_open, request, services)
    limit = BodyLimit(services.config.limits.max_payload_bytes, "limits.max_payload_bytes")
    try:
        with storage_errors():
            await receive(request, limit, services.config.deadlines.receive_s, form.write)
            await run_in_threadpool(form.finish)
        yield form.upload
    finally:
        form.discard()


def _open(request: Request, services: Services) -> _Form:
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise _refused("send the file as multipart/form-data, as OpenAI's client does")
    if shortage := disk_shortage(services.artifacts, services.config.limits):
        raise StorageFullError(shortage, "disk_full")
    with storage_errors():
        return _Form(services.artifacts.spool_dir / f"{uuid.uuid4()}.upload", boundary)


class _Form:
    """Parses a form while it arrives. One thread at a time may `write` and `finish`."""

    def __init__(self, path: Path, boundary: bytes):
        self.upload = Upload(path)
        self._names: dict[str, str] = {}
        self._header = [bytearray(), bytearray()]
        self._value = bytearray()
        self._is_file = self._has_ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_begin": self._begin_header,
                    "on_header_field": self._collect(0),
                    "on_header_value": self._collect(1),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _refused(str(error)) from None
        self._file = open(path, "wb")

    def write(self, piece: bytes) -> None:
        """Parse a piece of the body. Raises OSError and BadRequestError."""
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise _refused(f"it isn't a valid multipart form: {error}") from None

    def finish(self) -> None:
        """Complete the file. Raises OSError and BadRequestError."""
        if not self._has_ended:
            raise _refused("the multipart form ends too early")
        self._file.close()

    def discard(self) -> None:
        """Remove the file, unless it has become a blob."""
        self.upload.path.unlink(missing_ok=True)
        with suppress(OSError):
            self._file.close()

    def _begin_part(self) -> None:
        self._names, self._is_file = {}, False
        self._value.clear()

    def _begin_header(self) -> None:
        self._header = [bytearray(), bytearray()]

    def _collect(self, part: int) -> Callable[[bytes, int, int], None]:
        def collect(data: bytes, start: int, end: int) -> None:
            self._header[part] += data[start:end]

        return collect

    def _end_header(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._header[1]).decode("utf-8", "replace"))
            self._names = {key.decode(): value.decode("utf-8", "replace") for key, value in options.items()}

    def _end_headers(self) -> None:
        name = self._names.get("name", "")
        self._is_file = name == FILE
        if self._is_file:
            if self.upload.filename is not None:
                raise _refused("the form has more than one file; upload them one by one", FILE)
            # Some clients send paths. Only the name is kept.
            self.upload.filename = os.path.basename(self._names.get("filename", "").replace("\\", "/")) or "upload"
        elif not name or name in self.upload.fields:
            raise _refused("each part of the form needs a name of its own", name or None)
        elif len(self.upload.fields) == MAX_FIELDS:
            raise _refused(f"the form has more than {MAX_FIELDS} fields")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self.upload.num_bytes += end - start
            self._file.write(memoryview(data)[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            raise _refused(f"the field has more than {MAX_FIELD_BYTES} bytes", self._names.get("name"))

    def _end_part(self) -> None:
        if not self._is_file:
            self.upload.fields[self._names["name"]] = self._value.decode("utf-8", "replace")

    def _end(self) -> None:
        self._has_ended = True


def _refused(reason: str, name: str | None = None) -> BadRequestError:
    return BadRequestError([Problem(("body", name) if name else ("body",), reason)])
