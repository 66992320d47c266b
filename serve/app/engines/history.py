"""The lives of engine replicas: when each started, and why it ended, in the key-value store of Ray's GCS.

A replica records its start and, if it can, its end. One that is missing without an end was killed, or its node was
lost. The last MAX_KEPT of each base model are kept while Ray runs.
"""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from dataclasses import asdict, replace

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list, _internal_kv_put

from tandem.serve.observing.cluster_state import Ending, Life

logger = logging.getLogger(__name__)
_NAMESPACE = "tandem"
_LIFE = "life:"
MAX_KEPT = 20
MAX_REASON = 1000
"""Characters."""


def record_start(base_model: str, replica: str, node: str) -> Life:
    """Record that this process, a replica, starts. Return its life, for `record_end`."""
    life = Life(base_model, replica, node, time.time())
    _put(life)
    for old in sorted(lives()[base_model], key=lambda life: life.started_at)[:-MAX_KEPT]:
        _internal_kv_del(_key(old), namespace=_NAMESPACE)
    return life


def record_end(life: Life, ending: Ending, reason: str | None = None) -> None:
    """Record the end of a life, unless one is recorded. Never raises: Ray may be ending, too."""
    try:
        known = _internal_kv_get(_key(life), namespace=_NAMESPACE)
        if known is None or json.loads(known)["ending"] is None:
            _put(replace(life, ended_at=time.time(), ending=ending, reason=reason and reason[:MAX_REASON]))
    except Exception:
        logger.warning("The end of an engine of %s isn't recorded", life.base_model, exc_info=True)


def lives() -> dict[str, list[Life]]:
    """Return the replicas of each base model, those that run included, in no order. Blocks."""
    found: dict[str, list[Life]] = defaultdict(list)
    for key in _internal_kv_list(_LIFE, namespace=_NAMESPACE):
        value = _internal_kv_get(key, namespace=_NAMESPACE)
        if value is not None:
            life = Life(**json.loads(value))
            found[life.base_model].append(life)
    return found


def _put(life: Life) -> None:
    _internal_kv_put(_key(life), json.dumps(asdict(life)).encode(), namespace=_NAMESPACE)


def _key(life: Life) -> str:
    return _LIFE + json.dumps([life.base_model, life.replica])
