"""Immutable contents as HTTP downloads that can be resumed: ETag, Range and If-Range (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping

from fastapi import Request
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, Response, StreamingResponse

from tandem.serve.adapters.archive import Content
from tandem.serve.api.error_body import error_body

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def download(request: Request, content: Content, digest: str, headers: Mapping[str, str], media_type: str) -> Response:
    """Return the response to a GET or HEAD. `digest` names the version: it is the ETag and never means other bytes."""
    etag = f'"{digest}"'
    shared = {"accept-ranges": "bytes", "etag": etag, "x-content-type-options": "nosniff", **headers}
    if _lists(request.headers.get("if-none-match", ""), etag):
        content.close()
        return Response(status_code=304, headers=shared)
    asked = request.headers.get("range") if _may_be_partial(request, etag) else None
    span = (0, content.size) if asked is None else _span(asked, content.size)
    if span is None:
        content.close()
        message = f"Range {asked} is outside of the {content.size} bytes. Leave the header out for all of them."
        return _unsatisfiable(message, shared | {"content-range": f"bytes */{content.size}"})
    start, stop = span
    status = 200
    if (start, stop) != (0, content.size):
        status, shared["content-range"] = 206, f"bytes {start}-{stop - 1}/{content.size}"
    shared["content-length"] = str(stop - start)
    if request.method == "HEAD":
        content.close()
        return Response(status_code=status, headers=shared, media_type=media_type)
    return StreamingResponse(
        content.read(start, stop), status, shared, media_type, background=BackgroundTask(content.close)
    )


def repr_digest(sha256: bytes) -> str:
    """Return the field value of Repr-Digest (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(sha256).decode()}:"


def _may_be_partial(request: Request, etag: str) -> bool:
    """Return False if the client has a part of other bytes, and for a method that has no ranges."""
    condition = request.headers.get("if-range")
    return request.method == "GET" and (condition is None or condition.strip() == etag)


def _span(asked: str, size: int) -> tuple[int, int] | None:
    """Return first byte and end of a range, all bytes for a range that isn't understood, None beyond the end."""
    match = _RANGE.fullmatch(asked.strip())
    if match is None or match.groups() == ("", ""):  # several ranges may be answered with everything
        return 0, size
    first, last = match.groups()
    if not first:  # the last bytes
        return (max(0, size - int(last)), size) if int(last) else None
    if last and int(last) < int(first):
        return 0, size
    if int(first) >= size:
        return None
    return int(first), min(int(last) + 1, size) if last else size


def _lists(tags: str, etag: str) -> bool:
    return tags.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in tags.split(","))


def _unsatisfiable(message: str, headers: Mapping[str, str]) -> Response:
    body = error_body(message, "invalid_request_error", "range_not_satisfiable", "Range")
    return JSONResponse(body, 416, dict(headers))
