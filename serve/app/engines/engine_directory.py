"""The addresses and places of engine replicas, and the last amounts of ended ones, in the key-value store of Ray's GCS.

A replica announces its place before it loads the model, its address once it answers, and both with each health check.
It withdraws them before it stops. Whoever finds that an address refuses connections, or that an actor doesn't exist,
removes the entry: the replica was killed, or will announce itself again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list, _internal_kv_put
from ray.serve._private.constants import SERVE_NAMESPACE

from tandem.cluster.engine.metrics.usage import EngineUsage
from tandem.cluster.engine.server import EngineAddress
from tandem.cluster.learners.places.engine_places import EnginePlace

_NAMESPACE = "tandem"
_ENGINE = "engine:"
_PLACE = "place:"
_CONFIG = "config"
_USAGE = "usage:"


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


def own_place() -> EnginePlace:
    """Return the place of the replica that this process is."""
    context, group = ray.get_runtime_context(), ray.util.get_current_placement_group()
    return EnginePlace(
        actor=context.get_actor_name() or "",
        node_id=context.get_node_id(),
        bundle=group.id.hex() if group is not None else None,
    )


def announce_place(base_model: str, place: EnginePlace) -> None:
    _internal_kv_put(_place_key(base_model, place), b"", namespace=_NAMESPACE)


def withdraw_place(base_model: str, place: EnginePlace) -> None:
    _internal_kv_del(_place_key(base_model, place), namespace=_NAMESPACE)


def places() -> dict[str, list[EnginePlace]]:
    """Return the places of each base model's replicas that haven't died, and remove those of the others."""
    found: dict[str, list[EnginePlace]] = defaultdict(list)
    for key in _internal_kv_list(_PLACE, namespace=_NAMESPACE):
        entry = json.loads(key.decode().removeprefix(_PLACE))
        base_model, place = entry.pop("base_model"), EnginePlace(**entry)
        try:
            ray.get_actor(place.actor, namespace=SERVE_NAMESPACE)
        except ValueError:
            _internal_kv_del(key, namespace=_NAMESPACE)
        else:
            found[base_model].append(place)
    return found


def leave_usage(usage: EngineUsage) -> None:
    """Leave what a replica that ends has counted, for whoever records it."""
    _internal_kv_put(_USAGE + usage.source, usage.to_json(), namespace=_NAMESPACE)


def take_left_usage() -> Iterator[EngineUsage]:
    """Return what ended replicas have left. Each is removed when the next one is asked for."""
    for key in _internal_kv_list(_USAGE, namespace=_NAMESPACE):
        content = _internal_kv_get(key, namespace=_NAMESPACE)
        if content is not None:
            yield EngineUsage.of_json(content)
        _internal_kv_del(key, namespace=_NAMESPACE)


def publish_config(config: str) -> None:
    """Record the configuration of the service, as JSON, for the proxies."""
    _internal_kv_put(_CONFIG, config.encode(), namespace=_NAMESPACE)


def published_config() -> str | None:
    """Return the configuration of the service, None before the first start of its API."""
    config = _internal_kv_get(_CONFIG, namespace=_NAMESPACE)
    return None if config is None else config.decode()


def _key(base_model: str, address: EngineAddress) -> str:
    return _ENGINE + json.dumps({"base_model": base_model, **asdict(address)}, sort_keys=True)


def _place_key(base_model: str, place: EnginePlace) -> str:
    return _PLACE + json.dumps({"base_model": base_model, **asdict(place)}, sort_keys=True)
