"""Tickets: URLs with which a browser downloads a file, as it can't send an API key with a link.

A ticket stands for the key that asked for it, for one path and a few minutes. The route of that path then decides as if
the key had been sent: by its role and entity, and not at all once it is revoked.
"""

from __future__ import annotations

import re
from datetime import timedelta

from tandem.serve.api.signed_tokens import SignedTokens, invalid_url
from tandem.serve.errors import AuthenticationError, InvalidRequestError, Problem
from tandem.serve.store.store import Store
from tandem.serve.store.tables.training import ApiKeyRow

VALID_FOR = timedelta(minutes=10)
PARAMETER = "ticket"
"""Of a URL's query."""
_ID = r"[\w.-]{1,128}"
DOWNLOADS = (
    rf"/v1/preview/models/{_ID}/versions/\d+/adapter(/{_ID})?",
    rf"/v1/preview/(training-jobs|models)/{_ID}/artifacts/{_ID}",
    rf"/v1/files/{_ID}/content",
    rf"/v1/{_ID}/training-jobs/\d+/versions/\d+/log/files/{_ID}",
)
"""The paths that have tickets: those of files that may be large."""


class Tickets:
    def __init__(self, store: Store):
        self._store = store

    def make(self, key_id: str, path: str) -> str:
        """Return a ticket for the path, in the name of the key. Raises InvalidRequestError for other paths."""
        if not any(re.fullmatch(pattern, path) for pattern in DOWNLOADS):
            message = "isn't the path of a download; send one like /v1/preview/models/MODEL_ID/versions/3/adapter"
            raise InvalidRequestError([Problem(("body", "path"), message)])
        return self._tokens().make({"key": key_id, "path": path}, VALID_FOR)

    def holder(self, ticket: str, path: str) -> ApiKeyRow:
        """Return the key that got the ticket. Raises ForbiddenError, and AuthenticationError if it was revoked."""
        allowed = self._tokens().read(ticket)
        if allowed["path"] != path:
            raise invalid_url()
        key = self._store.keys.get(allowed["key"])
        if key.revoked_at is not None:
            raise AuthenticationError("The API key that asked for this URL was revoked.")
        return key

    def _tokens(self) -> SignedTokens:
        return SignedTokens(self._store.wandb.url_secret(), "download", self._store.database.now())
