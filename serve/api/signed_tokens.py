"""Tokens for URLs that allow something for a limited time, without an API key.

A token carries what it allows, until when, and an HMAC of both with a secret of the store, which all processes of the
service share.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from tandem.serve.errors import ForbiddenError


class SignedTokens:
    """`purpose`: a token is valid only for the purpose that it was made for. `now`: the time of the store's clock."""

    def __init__(self, secret: bytes, purpose: str, now: datetime):
        self._secret, self._purpose, self._now = secret, purpose.encode() + b"\n", now

    def make(self, allowed: Mapping[str, Any], valid_for: timedelta) -> str:
        """Return the token that allows this, in characters of a URL."""
        expires = int((self._now + valid_for).timestamp())
        payload = json.dumps({**allowed, "expires": expires}, separators=(",", ":")).encode()
        return f"{_encoded(payload)}.{_encoded(self._signature(payload))}"

    def read(self, token: str) -> dict[str, Any]:
        """Return what a token allows. Raises ForbiddenError if it is invalid, expired or for another purpose."""
        payload, _, signature = token.partition(".")
        try:
            raw, signed = _decoded(payload), _decoded(signature)
        except (binascii.Error, ValueError):
            raise invalid_url() from None
        if not hmac.compare_digest(signed, self._signature(raw)):
            raise invalid_url()
        allowed: dict[str, Any] = json.loads(raw)
        if allowed.pop("expires") < self._now.timestamp():
            raise ForbiddenError("This URL has expired. Begin the upload or download again.", "url_expired")
        return allowed

    def _signature(self, payload: bytes) -> bytes:
        return hmac.digest(self._secret, self._purpose + payload, hashlib.sha256)


def invalid_url() -> ForbiddenError:
    return ForbiddenError(
        "This URL isn't one that the service has made. Ask for the file again; don't change its URLs.", "url_invalid"
    )


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
