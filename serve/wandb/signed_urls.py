"""URLs that allow one upload or download for a limited time, without an API key.

The wandb package sends no key with the bytes of a file. A URL carries what it allows, until when, and an HMAC of both
with a secret of the store, which all processes of the service share.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Literal

from tandem.serve.errors import ForbiddenError

VALID_FOR = timedelta(hours=1)
UPLOADS, DOWNLOADS = "/wandb/uploads", "/wandb/downloads"


@dataclass(frozen=True)
class Grant:
    """What a URL allows: to read or write one file of an artifact of an entity."""

    action: Literal["read", "write"]
    entity: str
    artifact: str
    """The id of the artifact, as clients know it."""
    name: str
    md5: str | None = None
    """Of the bytes that may be written, in base64."""


class SignedUrls:
    """`base` is the address of the service as the client wrote it; a grant is valid until `now` + VALID_FOR."""

    def __init__(self, secret: bytes, base: str, now: datetime):
        self._secret, self._base, self._now = secret, base, now

    def url(self, grant: Grant) -> str:
        """Return the URL for a grant."""
        expires = int((self._now + VALID_FOR).timestamp())
        payload = json.dumps({**asdict(grant), "expires": expires}, separators=(",", ":")).encode()
        path = UPLOADS if grant.action == "write" else DOWNLOADS
        return f"{self._base}{path}/{_encoded(payload)}.{_encoded(self._signature(payload))}"

    def grant(self, token: str, action: Literal["read", "write"]) -> Grant:
        """Return the grant in the last part of a URL. Raises ForbiddenError if it is invalid, expired or another's."""
        payload, _, signature = token.partition(".")
        try:
            raw, signed = _decoded(payload), _decoded(signature)
        except (binascii.Error, ValueError):
            raise _invalid() from None
        if not hmac.compare_digest(signed, self._signature(raw)):
            raise _invalid()
        fields = json.loads(raw)
        expires = fields.pop("expires")
        if expires < self._now.timestamp():
            raise ForbiddenError("This URL has expired. Begin the upload or download again.", "url_expired")
        grant = Grant(**fields)
        if grant.action != action:
            raise _invalid()
        return grant

    def _signature(self, payload: bytes) -> bytes:
        return hmac.digest(self._secret, payload, hashlib.sha256)


def _invalid() -> ForbiddenError:
    return ForbiddenError(
        "This URL isn't one that the service has made. Ask for the artifact again; don't change its URLs.",
        "url_invalid",
    )


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
