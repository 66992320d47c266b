"""Bearer keys. A key belongs to an entity; what other entities own doesn't exist for it."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from tandem.serve.errors import AuthenticationError
from tandem.serve.schemas import NAME
from tandem.serve.services import ServicesDep
from tandem.serve.store import Store

KEY_PREFIX = "tdm_"
# auto_error would answer without our error shape; depending on the scheme keeps it in the OpenAPI document.
_bearer = HTTPBearer(auto_error=False)


@dataclass(frozen=True)
class Caller:
    """Who sent a request."""

    key_id: str
    entity: str


def create_key(store: Store, name: str, entity: str) -> str:
    """Makes a key and returns it; only its hash is kept. Raises ValueError for an entity that can't be in a path."""
    if not NAME.fullmatch(entity):
        raise ValueError(f"Entity {entity!r} isn't 1 to 128 letters, digits, '.', '_' or '-'.")
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    store.add_key(name, entity, _sha256(key), "admin")
    return key


def revoke_key(store: Store, key: str) -> bool:
    """Makes a key invalid, given as the key itself or as its id. False when there is no such key."""
    row = store.find_key(_sha256(key))
    return store.revoke_key(row.id if row else key)


def authenticate(
    services: ServicesDep, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Caller:
    """The sender of a request. Raises AuthenticationError."""
    if credentials is None:
        raise AuthenticationError(
            "The request has no API key. Send it as 'Authorization: Bearer tdm_...'; `tandem keys create` makes one."
        )
    row = services.store.find_key(_sha256(credentials.credentials))
    if row is None:
        raise AuthenticationError("The API key isn't valid here: it is mistyped, was revoked, or is another service's.")
    return Caller(row.id, row.entity)


CallerDep = Annotated[Caller, Depends(authenticate)]


def _sha256(key: str) -> str:
    # Keys are 256 random bits, so there is nothing to guess and a slow hash would add no safety.
    return hashlib.sha256(key.encode()).hexdigest()
