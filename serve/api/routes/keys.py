"""Routes with which an entity's admins manage its API keys."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends

from tandem.serve import keys
from tandem.serve.api.auth import AdminCaller
from tandem.serve.api.bodies.json_body import Received, documented, json_body
from tandem.serve.api.services import ServicesDep
from tandem.serve.api.wire.paging import Limit, Page, unknown_cursor
from tandem.serve.api.wire.requests import CreateKey
from tandem.serve.api.wire.responses import ApiKey, CreatedApiKey, KeyRevoked
from tandem.serve.api.wire.views import key_view
from tandem.serve.errors import ConflictError, NotFoundError

router = APIRouter(prefix="/preview/keys", tags=["keys"])


@router.post("", **documented(CreateKey))
def create_key(
    caller: AdminCaller, body: Annotated[Received[CreateKey], Depends(json_body(CreateKey))], services: ServicesDep
) -> CreatedApiKey:
    """Create a key of the caller's entity. The response has its secret, which is shown only once."""
    row, key = keys.add_key(services.store, body.value.name, caller.entity, body.value.role)
    return CreatedApiKey(**key_view(row).model_dump(), key=key)


@router.get("")
def list_keys(caller: AdminCaller, services: ServicesDep, after: UUID | None = None, limit: Limit = 20) -> Page[ApiKey]:
    """List the entity's keys, including revoked ones, oldest first."""
    rows = list(services.store.keys.all(caller.entity))
    if after is not None:
        ids = [row.id for row in rows]
        if str(after) not in ids:
            raise unknown_cursor()
        rows = rows[ids.index(str(after)) + 1 :]
    return Page.of([key_view(row) for row in rows], limit)


@router.delete("/{key_id}")
def revoke_key(key_id: UUID, caller: AdminCaller, services: ServicesDep) -> KeyRevoked:
    """Revoke a key of the entity. A key can't revoke itself, so that an entity can't lose its last key by mistake."""
    if str(key_id) == caller.key_id:
        raise ConflictError(
            "A key can't revoke itself. Use another admin key of this entity, or `tandem keys revoke` on the server.",
            "own_key",
            "key_id",
        )
    if not services.store.keys.revoke(str(key_id), caller.entity):
        raise NotFoundError(
            f"There is no key {key_id}: the id is wrong, or the key belongs to another entity.",
            "key_not_found",
            "key_id",
        )
    return KeyRevoked(id=str(key_id))
