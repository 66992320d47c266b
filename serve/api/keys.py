"""Routes with which an entity's admins manage its API keys."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends

from tandem.serve.api.auth import AdminCaller, add_key
from tandem.serve.api.json_body import Received, documented, json_body
from tandem.serve.api.paging import Limit, Page, not_listed
from tandem.serve.api.schemas import ApiKey, CreatedApiKey, CreateKey, KeyRevoked
from tandem.serve.api.services import ServicesDep
from tandem.serve.errors import ConflictError, NotFoundError

router = APIRouter(prefix="/preview/keys", tags=["keys"])


@router.post("", **documented(CreateKey))
def create_key(
    caller: AdminCaller, body: Annotated[Received[CreateKey], Depends(json_body(CreateKey))], services: ServicesDep
) -> CreatedApiKey:
    """Makes a key of the caller's entity. The answer has its secret, which is shown only now."""
    row, key = add_key(services.store, body.value.name, caller.entity, body.value.role)
    return CreatedApiKey(**ApiKey.of(row).model_dump(), key=key)


@router.get("")
def list_keys(caller: AdminCaller, services: ServicesDep, after: UUID | None = None, limit: Limit = 20) -> Page[ApiKey]:
    """The entity's keys, revoked ones too, oldest first."""
    rows = list(services.store.list_keys(caller.entity))
    if after is not None:
        ids = [row.id for row in rows]
        if str(after) not in ids:
            raise not_listed()
        rows = rows[ids.index(str(after)) + 1 :]
    return Page.of([ApiKey.of(row) for row in rows], limit)


@router.delete("/{key_id}")
def revoke_key(key_id: UUID, caller: AdminCaller, services: ServicesDep) -> KeyRevoked:
    """Makes a key of the entity invalid from now on. The key that asks can't revoke itself: an entity might lose its
    last one by mistake."""
    if str(key_id) == caller.key_id:
        raise ConflictError(
            "A key can't revoke itself. Use another admin key of this entity, or `tandem keys revoke` on the service.",
            "own_key",
            "key_id",
        )
    if not services.store.revoke_key(str(key_id), caller.entity):
        raise NotFoundError(
            f"There is no key {key_id}: the id is wrong, or it belongs to another entity.", "key_not_found", "key_id"
        )
    return KeyRevoked(id=str(key_id))
