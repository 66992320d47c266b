"""Bearer keys. A key has an entity, and what other entities own doesn't exist for it; its role says what it may do.

Every route under /v1 says in its signature whom it lets in: `caller: InferCaller`, `TrainCaller` or `AdminCaller`. That
parameter stands before the body, so that nothing of a request is read before its key has been checked.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from tandem.cluster.config import TandemConfig
from tandem.serve.api.schemas import NAME, Role
from tandem.serve.api.services import ServicesDep
from tandem.serve.errors import AuthenticationError, ForbiddenError
from tandem.serve.store.store import Store
from tandem.serve.store.tables import ApiKeyRow

KEY_PREFIX = "tdm_"
RESERVED_ENTITIES = ("preview",)  # /v1/preview/... isn't of a project of that name
TOKEN_HEADER = "x-auth-token"  # what clients of the training-job-configs API send in place of a bearer key
ROLES: tuple[Role, ...] = get_args(Role)
"""Each may do what the ones before it may: infer asks for completions, train also trains, admin also makes keys."""
# auto_error would answer without our error shape; depending on the scheme keeps it in the OpenAPI document.
_bearer = HTTPBearer(auto_error=False)


@dataclass(frozen=True)
class Caller:
    """Who sent a request."""

    key_id: str
    entity: str
    role: str


def create_key(store: Store, name: str, entity: str, role: Role = "train") -> str:
    """Makes a key and returns it; only its hash is kept. Raises ValueError for an entity that can't be in a path."""
    return add_key(store, name, entity, role)[1]


def add_key(store: Store, name: str, entity: str, role: Role) -> tuple[ApiKeyRow, str]:
    """`create_key`, with what the store knows of the key."""
    if not NAME.fullmatch(entity):
        raise ValueError(
            f"Entity {entity!r} isn't 1 to 128 letters, digits, '.', '_' or '-', beginning with a letter, digit or '_'."
        )
    if entity in RESERVED_ENTITIES:
        raise ValueError(f"Entity {entity!r} can't be: /v1/{entity}/... is a part of the API. Choose another name.")
    if role not in ROLES:
        raise ValueError(f"There is no role {role!r}; the roles are {', '.join(ROLES)}.")
    key, key_sha256 = generate_key()
    return store.add_key(name, entity, key_sha256, role), key


def generate_key() -> tuple[str, str]:
    """A new key that no store knows yet, and its SHA-256."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return key, _sha256(key)


def ensure_admin_key(store: Store, config: TandemConfig) -> None:
    """Makes the key of `config.admin_key_sha256`, if any, an admin of entity default.

    So a cluster can be deployed from files alone, without a secret in them. Any number of processes may do this, at
    any start. A key that was revoked stays revoked, and one that is taken out of the configuration stays valid.
    """
    if config.admin_key_sha256 is not None:
        store.ensure_key("of the configuration", "default", config.admin_key_sha256, "admin")


def revoke_key(store: Store, key: str) -> bool:
    """Makes a key invalid, given as the key itself or as its id. False when there is no such key."""
    row = store.find_key(_sha256(key))
    return store.revoke_key(row.id if row else key)


def authenticate(
    request: Request,
    services: ServicesDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    """The sender of a request, whatever its role. Raises AuthenticationError."""
    key = credentials.credentials if credentials else request.headers.get(TOKEN_HEADER)
    if not key:
        raise AuthenticationError(
            "The request has no API key. Send it as 'Authorization: Bearer tdm_...'; `tandem keys create` makes one."
        )
    row = services.store.find_key(_sha256(key))
    if row is None:
        raise AuthenticationError("The API key isn't valid here: it is mistyped, was revoked, or is another service's.")
    return Caller(row.id, row.entity, row.role)


def has_key(request: Request) -> bool:
    """Whether a request comes with anything in the place of a key."""
    return any(request.headers.get(header) for header in ("authorization", TOKEN_HEADER))


def _caller_who_may(role: Role) -> Callable[..., Caller]:
    def check(request: Request, caller: Annotated[Caller, Depends(authenticate)]) -> Caller:
        if caller.role not in ROLES[ROLES.index(role) :]:
            raise ForbiddenError(
                f"{request.method} {request.scope['route'].path} needs a key with role {role}; this key's role is "
                f"{caller.role}. An admin of entity {caller.entity} can make one (POST /v1/preview/keys), or whoever "
                f"runs the service: tandem keys create --role {role} --entity {caller.entity} --name NAME",
                "insufficient_role",
            )
        return caller

    return check


_CHECKS: dict[Role, Callable[..., Caller]] = {role: _caller_who_may(role) for role in ROLES}
InferCaller = Annotated[Caller, Depends(_CHECKS["infer"])]
TrainCaller = Annotated[Caller, Depends(_CHECKS["train"])]
AdminCaller = Annotated[Caller, Depends(_CHECKS["admin"])]


def requires(role: Role) -> Any:
    """A dependency for all routes of a router that don't need to know who calls them."""
    return Depends(_CHECKS[role])


def declared_role(dependencies: list[Callable[..., object] | None]) -> Role | None:
    """The role that a route with these dependencies asks for; None when it declares none."""
    return next((role for role, check in _CHECKS.items() if check in dependencies), None)


def _sha256(key: str) -> str:
    # Keys are 256 random bits, so there is nothing to guess and a slow hash would add no safety.
    return hashlib.sha256(key.encode()).hexdigest()
