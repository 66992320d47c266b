"""The addresses of engine replicas, in the key-value store of Ray's GCS.

A replica announces itself at its start and with each health check, and withdraws before it stops. Whoever finds that an
address refuses connections removes it: the replica was killed, or will announce itself again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list, _internal_kv_put

from tandem.cluster.engine.server import EngineAddress

_NAMESPACE = "tandem"
_ENGINE = "engine:"
_CONFIG = "config"


def announce(base_model: str, address: EngineAddress) -> None:
    _internal_kv_put(_key(base_model, address), b"", namespace=_NAMESPACE)


def withdraw(base_model: str, address: EngineAddress) -> None:
    _internal_kv_del(_key(base_model, address), namespace=_NAMESPACE)


def addresses() -> dict[str, list[EngineAddress]]:
    """Return the announced addresses of each base model, in one call."""
    found: dict[str, list[EngineAddress]] = defaultdict(list)
    for key in _internal_kv_list(_ENGINE, namespace=_NAMESPACE):
        entry = json.loads(key.decode().removeprefix(_ENGINE))
        found[entry.pop("base_model")].append(EngineAddress(**entry))
    return found


def publish_config(config: str) -> None:
    """Record the configuration of the service, as JSON, for the proxies."""
    _internal_kv_put(_CONFIG, config.encode(), namespace=_NAMESPACE)


def published_config() -> str | None:
    """Return the configuration of the service, None before the first start of its API."""
    config = _internal_kv_get(_CONFIG, namespace=_NAMESPACE)
    return None if config is None else config.decode()


def _key(base_model: str, address: EngineAddress) -> str:
    return _ENGINE + json.dumps({"base_model": base_model, **asdict(address)}, sort_keys=True)
