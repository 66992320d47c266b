"""GET /v1/preview/me: the key that sends the request."""

from __future__ import annotations

from fastapi import APIRouter

from tandem.serve.api.auth import InferCaller
from tandem.serve.api.services import ServicesDep
from tandem.serve.api.wire.responses import ApiKey
from tandem.serve.api.wire.views import key_view

router = APIRouter(prefix="/preview/me", tags=["keys"])


@router.get("")
def get_own_key(caller: InferCaller, services: ServicesDep) -> ApiKey:
    """Return the key that sent this request, without its secret: its entity, role and name."""
    return key_view(services.store.keys.get(caller.key_id))
