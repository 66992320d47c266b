"""Routes of the hosted service's console: the key's identity, and refusals that say what this service has instead."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter

from tandem.serve.api.auth import InferCaller
from tandem.serve.errors import NotFoundError
from tandem.serve.tinker.api.context import TinkerDep
from tandem.serve.tinker.wire.rest import KeyDetails, Organization, OwnKey, User

router = APIRouter(tags=["tinker"])
ELSEWHERE = {
    (
        "GET",
        "/audit",
    ): "an audit log; the service's logs have the key and request of each change (docs/observability.md)",
    ("GET", "/billing/usage/events"): "billing; GET /v1/preview/usage and `tandem usage` have what an entity used",
    ("GET", "/billing/usage/checkpoints/current"): "billing of storage; GET /api/v1/checkpoints has sizes",
    ("GET", "/sessions/{session_id}/trace_export"): "exported timelines; `tracing` sends spans to OpenTelemetry",
    ("PUT", "/sessions/{session_id}/project"): "moves between projects; a session's project_id is set when it begins",
    ("DELETE", "/auth/apikey/me"): "keys that delete themselves; DELETE /v1/preview/keys/ID needs a key of role admin",
}
"""What isn't here, by method and path. 404: the SDK repeats a 501 for minutes."""


@router.get("/auth/apikey/me")
def get_own_key(caller: InferCaller, tinker: TinkerDep) -> OwnKey:
    """Return the key that sent this request, without its secret."""
    row = tinker.services.store.keys.get(caller.key_id)
    details = KeyDetails(org_details=Organization(name=row.entity), user_details=User(email=row.name))
    return OwnKey(key_id=UUID(row.id).int, name=row.name, note=f"role {row.role}", details=details)


def _refuse(method: str, path: str, sentence: str) -> None:
    def refuse(caller: InferCaller) -> None:
        raise NotFoundError(f"This service has no {sentence}.", "not_available")

    router.add_api_route(path, refuse, methods=[method], include_in_schema=False)


for (_method, _path), _sentence in ELSEWHERE.items():
    _refuse(_method, _path, _sentence)
