"""URLs that allow one upload or download for a limited time: the wandb package sends no key with a file's bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Literal

from tandem.serve.api.signed_tokens import SignedTokens, invalid_url

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
        self._tokens, self._base = SignedTokens(secret, "wandb", now), base

    def url(self, grant: Grant) -> str:
        """Return the URL for a grant."""
        path = UPLOADS if grant.action == "write" else DOWNLOADS
        return f"{self._base}{path}/{self._tokens.make(asdict(grant), VALID_FOR)}"

    def grant(self, token: str, action: Literal["read", "write"]) -> Grant:
        """Return the grant in the last part of a URL. Raises ForbiddenError if it is invalid, expired or another's."""
        grant = Grant(**self._tokens.read(token))
        if grant.action != action:
            raise invalid_url()
        return grant
