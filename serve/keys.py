"""API keys: 256 random bits, of which the store keeps only a hash."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Literal, get_args

from tandem.cluster.config import TandemConfig
from tandem.serve.names import NAME, NAME_RULE, RESERVED_ENTITIES
from tandem.serve.store.store import Store
from tandem.serve.store.tables.training import ApiKeyRow

Role = Literal["infer", "train", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Each role includes those before it: infer requests completions, train also trains, admin also manages keys."""
KEY_PREFIX = "tdm_"
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # surrogates: bytes that aren't UTF-8


def create_key(store: Store, name: str, entity: str, role: str = "train") -> str:
    """Create a key and return it. Raises ValueError for an unknown role or a name that can't be an entity."""
    return add_key(store, name, entity, role)[1]


def add_key(store: Store, name: str, entity: str, role: str) -> tuple[ApiKeyRow, str]:
    """Create a key. Return its row and the key itself. Raises ValueError like `create_key`."""
    if not NAME.fullmatch(entity):
        raise ValueError(f"Entity {entity!r} is no valid name: it must be {NAME_RULE}.")
    if entity in RESERVED_ENTITIES:
        raise ValueError(f"Entity {entity!r} is reserved for the paths /v1/{entity}/... Choose another name.")
    if role not in ROLES:
        raise ValueError(f"There is no role {role!r}; the roles are {', '.join(ROLES)}.")
    if _UNPRINTABLE.search(name):
        raise ValueError(f"The name {name!r} has control characters. Write another one.")
    key, key_sha256 = generate_key()
    return store.keys.add(name, entity, key_sha256, role), key


def generate_key() -> tuple[str, str]:
    """Return a new key, which no store knows yet, and its SHA-256.

    It has no dash: the wandb package takes what precedes one for a prefix, and wants 40 characters after it.
    """
    key = KEY_PREFIX + secrets.token_hex(32)
    return key, hash_key(key)


def ensure_admin_key(store: Store, config: TandemConfig) -> None:
    """Add the key of `config.admin_key_sha256`, if set, as an admin of entity default.

    A cluster can thus be deployed from files without a secret in them. Several processes may call this, at every start.
    A revoked key stays revoked, and a key that is removed from the configuration stays valid.
    """
    if config.admin_key_sha256 is not None:
        store.keys.ensure("of the configuration", "default", config.admin_key_sha256, "admin")


def revoke_key(store: Store, key: str) -> bool:
    """Revoke a key, given the key itself or its id. Return False if there is no such key."""
    row = store.keys.find(hash_key(key))
    return store.keys.revoke(row.id if row else key)


def hash_key(key: str) -> str:
    """Return the key's SHA-256. A slow hash would add nothing: random keys can't be guessed."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
