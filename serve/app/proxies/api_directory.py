"""The addresses at which replicas of the API take requests from proxies, in the key-value store of Ray's GCS.

A replica announces its address with each health check and withdraws it before it stops. A proxy that finds an address
dead removes it.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_list, _internal_kv_put

from tandem.cluster.engine.server import EngineAddress

API = "api"
"""The one group of addresses."""
_NAMESPACE = "tandem"
_PREFIX = "api:"


def announce(address: EngineAddress) -> None:
    _internal_kv_put(_key(address), b"", namespace=_NAMESPACE)


def withdraw(group: str, address: EngineAddress) -> None:
    _internal_kv_del(_key(address), namespace=_NAMESPACE)


def addresses() -> dict[str, list[EngineAddress]]:
    """Return the announced addresses, in one call."""
    keys = _internal_kv_list(_PREFIX, namespace=_NAMESPACE)
    return {API: [EngineAddress(**json.loads(key.decode().removeprefix(_PREFIX))) for key in keys]}


def _key(address: EngineAddress) -> str:
    return _PREFIX + json.dumps(asdict(address), sort_keys=True)
