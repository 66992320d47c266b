"""A service that already runs on a Ray cluster: its state, who started it, its URL, and a key for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.serve._private.constants import SERVE_NAMESPACE
from ray.serve._private.controller import SHUTDOWN_IN_PROGRESS_KEY
from ray.serve._private.storage.kv_store import RayInternalKVStore
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus, HTTPOptionsSchema, ProxyStatus

from tandem.cli.deployment import APPLICATION, START_DEADLINE_S
from tandem.cli.exposure import is_local, url
from tandem.cli.startup import StartError
from tandem.cluster.config import HttpConfig
from tandem.serve.app.api_replica import API, STARTED_BY
from tandem.serve.app.serve_state import serve_details

logger = logging.getLogger(__name__)
CALL_S = 30.0
POLL_S = 0.5
REVOKE_S = 1.0  # short, because a command that ends may be killed soon


@dataclass(frozen=True)
class FoundService:
    """A service that is running."""

    started_by: str | None
    """The argument of `deployed`; None for a service that was started in another way."""


def serve_is_running() -> bool:
    return _details() is not None


def settled_service(on_progress: Callable[[str], None], own: Callable[[str], bool]) -> FoundService | None:
    """Return the service of the connected cluster once it is ready, or None if there is none.

    Waits while a service is starting or shutting down. Returns None for a failed one whose `started_by` is the
    caller's `own`, so that the caller deploys it again. Raises StartError for any other failed one.
    """
    deadline = time.monotonic() + START_DEADLINE_S
    while True:
        details = _details()
        application = details["applications"].get(APPLICATION) if details else None
        is_ending = details is not None and _is_shutting_down()
        if not is_ending and application is None:
            return None
        started_by = _started_by(application) if application else None
        state = (
            ApplicationStatus(application["status"]) if application and not is_ending else ApplicationStatus.DELETING
        )
        if state == ApplicationStatus.RUNNING:
            return FoundService(started_by)
        if state == ApplicationStatus.DEPLOY_FAILED and started_by is not None and own(started_by):
            return None
        if state == ApplicationStatus.DEPLOY_FAILED or time.monotonic() > deadline:
            why = application["message"] if application else "Ray Serve doesn't shut down"
            raise StartError(
                f"The service of this cluster isn't ready ({state.value}): {why}\n"
                "Repair it, or delete it with `serve delete tandem` to have a new one started."
            )
        is_going = state == ApplicationStatus.DELETING
        on_progress(
            "waiting for the previous service to shut down" if is_going else "waiting for the service of this cluster"
        )
        time.sleep(POLL_S)


def service_url() -> str:
    """Return the URL at which this process reaches the service of its cluster. Raises StartError."""
    details = _details()
    if details is None:
        raise StartError("Ray Serve has just been shut down.")
    listens = HTTPOptionsSchema(**details["http_options"])  # they leave out defaults
    address = HttpConfig(host=listens.host, port=listens.port)
    prefix = (details["applications"][APPLICATION]["route_prefix"] or "").rstrip("/")
    if ray.get_runtime_context().get_node_id() in details["proxies"]:
        return url(address) + prefix
    others = [proxy["node_ip"] for proxy in details["proxies"].values() if proxy["status"] == ProxyStatus.HEALTHY]
    if not others or is_local(address.host):
        raise StartError(
            f"The service of this cluster listens on {address.host}:{address.port} of other nodes. Run this on the "
            "head node, or let Ray Serve listen on 0.0.0.0 (http.host; docs/security.md says who can reach it then)."
        )
    return url(HttpConfig(host=others[0], port=address.port)) + prefix


class ClusterKey:
    """A key of the service of this cluster, made by the service itself."""

    def __init__(self, name: str, entity: str):
        self._api = _api()
        self.id, self.key = self._api.make_key.remote(name, entity).result(timeout_s=CALL_S)
        self._lock, self._is_revoked = threading.Lock(), False

    def revoke(self) -> None:
        """Revoke the key. Safe to repeat, also from threads. Raises Serve's error if the service doesn't answer."""
        with self._lock:
            if not self._is_revoked:
                self._api.revoke_key.remote(self.id).result(timeout_s=REVOKE_S)
                self._is_revoked = True


@contextmanager
def key_for(name: str, entity: str, remember: Callable[[str | None], None]) -> Iterator[ClusterKey]:
    """Yield a key that is revoked at the end. `remember` receives its id, and None once it is revoked."""
    key = ClusterKey(name, entity)
    remember(key.id)
    try:
        yield key
    finally:
        with suppress(Exception):  # the service may be gone; the next command with the same memory revokes it
            key.revoke()
            remember(None)


def revoke_key(key_id: str) -> None:
    _api().revoke_key.remote(key_id).result(timeout_s=CALL_S)


def _api() -> DeploymentHandle[Any]:
    return serve.get_deployment_handle(API, APPLICATION)


def _details() -> dict[str, Any] | None:
    """Return Serve's own details, or None if it doesn't run."""
    try:
        return serve_details(CALL_S)
    except (RayServeException, ray.exceptions.RayActorError):  # it has just ended
        return None


def _is_shutting_down() -> bool:
    """True if Serve is shutting down: it then ignores requests silently."""
    return RayInternalKVStore(f"ray-serve-{SERVE_NAMESPACE}").get(SHUTDOWN_IN_PROGRESS_KEY) is not None


def _started_by(application: Mapping[str, Any]) -> str | None:
    for deployment in application["deployments"].values():
        options = deployment["deployment_config"].get("ray_actor_options") or {}
        variables = (options.get("runtime_env") or {}).get("env_vars") or {}
        if STARTED_BY in variables:
            return str(variables[STARTED_BY])
    return None
