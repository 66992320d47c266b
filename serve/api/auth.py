"""Authentication by bearer key, and authorization by the key's role.

A key belongs to an entity; objects of other entities don't exist for it. Every route under /v1 declares in its
signature the role it requires: `caller: InferCaller`, `TrainCaller` or `AdminCaller`. That parameter stands before the
body, so that the key is checked before anything of the body is read.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from starlette.concurrency import run_in_threadpool

from tandem.cluster.engine.requests.protocols import speaks_anthropic
from tandem.serve.api.quick_reads import read_quickly
from tandem.serve.api.services import ServicesDep
from tandem.serve.api.tickets import PARAMETER, Tickets
from tandem.serve.errors import AuthenticationError, ForbiddenError
from tandem.serve.keys import ROLES, Role, hash_key
from tandem.serve.store.store import Store

TOKEN_HEADER = "x-auth-token"  # sent instead of a bearer key by clients of the training-job-configs API
ANTHROPIC_KEY_HEADER = "x-api-key"  # likewise, by clients of Anthropic's Messages, on its routes alone
SDK_ROUTES, SDK_KEY_HEADER, SDK_PREFIX = "/api/v1/", "x-api-key", "tml-"  # the tinker SDK, and how its keys begin
BASIC_USER = "api"  # whose password the wandb package sends
# auto_error would answer in another shape than ours; depending on the scheme keeps it in the OpenAPI document.
_bearer = HTTPBearer(auto_error=False)


@dataclass(frozen=True)
class Caller:
    """The key that sent a request."""

    key_id: str
    entity: str
    role: str


async def authenticate(
    request: Request,
    services: ServicesDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    """Return the sender of a request, of any role. Raises AuthenticationError.

    A download may have a ticket in place of a key; a wrong one raises ForbiddenError.
    """
    ticket = request.query_params.get(PARAMETER)
    if ticket and request.method in ("GET", "HEAD") and not has_key(request):
        key = await run_in_threadpool(Tickets(services.store).holder, ticket, request.scope["path"])
        return Caller(key.id, key.entity, key.role)
    bearer = credentials.credentials if credentials else None
    return await read_quickly(services.store, sender, request, services.store, bearer)


def include_with_key(app: FastAPI, router: APIRouter, prefix: str = "/v1") -> None:
    """Add the router's routes under `prefix`. They require a key."""
    app.include_router(router, prefix=prefix, dependencies=[Depends(authenticate)])


def sender(request: Request, store: Store, bearer: str | None) -> Caller:
    """Return the sender of a request, given its bearer key if it has one. Raises AuthenticationError."""
    path: str = request.scope["path"]
    is_anthropic, is_sdk = speaks_anthropic(path), path.startswith(SDK_ROUTES)
    header = ANTHROPIC_KEY_HEADER if is_anthropic else SDK_KEY_HEADER if is_sdk else TOKEN_HEADER
    key = bearer or _basic_key(request) or request.headers.get(TOKEN_HEADER) or request.headers.get(header)
    if key and is_sdk:
        key = key.removeprefix(SDK_PREFIX)
    if not key:
        shown = "Authorization: Bearer tdm_..."
        if is_anthropic or is_sdk:
            shown = f"{header}: {SDK_PREFIX if is_sdk else ''}tdm_..."
        raise AuthenticationError(
            f"The request has no API key. Send one as '{shown}'; `tandem keys create` creates it."
        )
    row = store.keys.find(hash_key(key))
    if row is None:
        raise AuthenticationError(
            "The API key isn't valid: it is mistyped, was revoked, or belongs to another service."
        )
    return Caller(row.id, row.entity, row.role)


def bearer_key(request: Request) -> str | None:
    """Return the bearer key of a request as FastAPI reads it, None without one."""
    scheme, key = get_authorization_scheme_param(request.headers.get("authorization"))
    return key if scheme.lower() == "bearer" and key else None


def _basic_key(request: Request) -> str | None:
    """Return the key that the wandb package sends: as the password of user "api". None without one."""
    scheme, credentials = get_authorization_scheme_param(request.headers.get("authorization"))
    if scheme.lower() != "basic":
        return None
    try:
        user, _, key = base64.b64decode(credentials, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return key if user == BASIC_USER else None


def has_key(request: Request) -> bool:
    """Return True if the request has a header for a key, valid or not."""
    return any(request.headers.get(header) for header in ("authorization", TOKEN_HEADER))


def _caller_with(role: Role) -> Callable[..., Awaitable[Caller]]:
    async def check(request: Request, caller: Annotated[Caller, Depends(authenticate)]) -> Caller:
        if caller.role not in ROLES[ROLES.index(role) :]:
            raise ForbiddenError(
                f"{request.method} {request.scope['route'].path} requires a key with role {role}; this key has role "
                f"{caller.role}. An admin of entity {caller.entity} can create one (POST /v1/preview/keys), and so can "
                f"the service's operator: tandem keys create --role {role} --entity {caller.entity} --name NAME",
                "insufficient_role",
            )
        return caller

    return check


_CHECKS: dict[Role, Callable[..., Awaitable[Caller]]] = {role: _caller_with(role) for role in ROLES}
InferCaller = Annotated[Caller, Depends(_CHECKS["infer"])]
TrainCaller = Annotated[Caller, Depends(_CHECKS["train"])]
AdminCaller = Annotated[Caller, Depends(_CHECKS["admin"])]


def requires(role: Role) -> Any:
    """Return the dependency of routes that require a role but don't use the caller."""
    return Depends(_CHECKS[role])


def declared_role(dependencies: list[Callable[..., object] | None]) -> Role | None:
    """Return the role that a route with these dependencies requires; None if it declares none."""
    return next((role for role, check in _CHECKS.items() if check in dependencies), None)
