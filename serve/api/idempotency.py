"""The header Idempotency-Key, which makes repeats of a request safe."""

from __future__ import annotations

from fastapi import Request

from tandem.serve.errors import InvalidRequestError, Problem

MAX_IDEMPOTENCY_KEY = 255


def idempotency_key(request: Request) -> str | None:
    """Return the key of a request, None without one. Raises InvalidRequestError."""
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= MAX_IDEMPOTENCY_KEY and key.isascii() and key.isprintable()):
        message = f"must be 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters"
        raise InvalidRequestError([Problem(("header", "Idempotency-Key"), message)])
    return key
