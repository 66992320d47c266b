"""The live state of engines, learners and nodes, asked from Serve's controller, the processes and Ray."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import httpx
import ray
from ray.serve._private.common import ReplicaState
from ray.serve.handle import DeploymentHandle

from tandem.cluster.engine.metrics.engine_state import EngineState
from tandem.cluster.engine.requests.headers import TOKEN_HEADER
from tandem.cluster.engine.server import STATE_PATH, EngineAddress
from tandem.serve.app.engines import engine_directory
from tandem.serve.app.engines import history as engine_history
from tandem.serve.app.engines.health import deployment_fault
from tandem.serve.app.proxies.http_connection import open_connection
from tandem.serve.app.serve_state import application_of, serve_details
from tandem.serve.observing.cluster_state import BaseEngines, BaseLearners, Life, Replica, ReplicaCondition

logger = logging.getLogger(__name__)
T = TypeVar("T")
SERVE_S = 3.0
REPLICA_S = 2.0
COORDINATOR_S = 4.0
NODE_S = 5.0
MAX_ENDED = 10
_CONDITIONS: dict[str, ReplicaCondition] = {
    ReplicaState.STARTING: "starting",
    ReplicaState.STOPPING: "stopping",
}


class ServeClusterView:
    """See `ClusterView`. Every question has a deadline, and all questions of a call are asked at once."""

    def __init__(
        self,
        application: str,
        engines: Mapping[str, DeploymentHandle[Any]],
        num_replicas: Mapping[str, int],
        coordinator: DeploymentHandle[Any],
    ):
        """`engines` and `num_replicas` have base models as keys."""
        self._application, self._engines, self._num_replicas = application, engines, num_replicas
        self._coordinator = coordinator

    async def engines(self) -> Mapping[str, BaseEngines]:
        details, addresses, lives = await asyncio.gather(
            _in_time(asyncio.to_thread(serve_details, SERVE_S), SERVE_S + 1),
            _in_time(asyncio.to_thread(engine_directory.addresses), SERVE_S),
            _in_time(asyncio.to_thread(engine_history.lives), SERVE_S),
        )
        deployments = ((details or {}).get("applications", {}).get(self._application) or {}).get("deployments", {})
        known = {
            base: await self._replicas(deployments.get(handle.deployment_name), (addresses or {}).get(base, ()))
            for base, handle in self._engines.items()
        }
        overview = application_of(details, self._application) if details else None

        def fault(base: str) -> str | None:
            if not details:
                return "Ray Serve's controller doesn't answer."
            deployed = overview.deployments.get(self._engines[base].deployment_name) if overview else None
            found = deployment_fault(deployed, self._num_replicas[base])
            return str(found) if found else None

        return {
            base: BaseEngines(
                num_wanted=self._num_replicas[base],
                fault=fault(base),
                replicas=replicas,
                ended=_ended((lives or {}).get(base, ()), {replica.id for replica in replicas}, bool(details)),
            )
            for base, replicas in known.items()
        }

    async def _replicas(
        self, deployment: Mapping[str, Any] | None, addresses: Sequence[EngineAddress]
    ) -> Sequence[Replica]:
        """Return the replicas that Serve knows. Without Serve's answer, those that announced themselves."""
        by_id = {address.replica: address for address in addresses}
        if deployment is None:
            found: list[Mapping[str, Any]] = [{"replica_id": id, "node_ip": by_id[id].host} for id in by_id]
        else:
            found = deployment["replicas"]
        return await asyncio.gather(*(_replica(each, by_id.get(each["replica_id"])) for each in found))

    async def learners(self) -> Mapping[str, BaseLearners] | None:
        answer = self._coordinator.learners.remote()
        try:
            async with asyncio.timeout(COORDINATOR_S):
                found: Mapping[str, BaseLearners] = await answer
        except TimeoutError:
            answer.cancel()  # type: ignore[no-untyped-call]
            return None
        except Exception:
            logger.warning("The coordinator doesn't answer", exc_info=True)
            return None
        return found

    async def metric_pages(self) -> Mapping[str, str | None]:
        nodes = await _in_time(asyncio.to_thread(metric_addresses), NODE_S) or {}
        async with httpx.AsyncClient(timeout=NODE_S, trust_env=False) as client:
            pages = await asyncio.gather(*(_page(client, url) for url in nodes.values()))
        return dict(zip(nodes, pages, strict=True))


def metric_addresses() -> dict[str, str]:
    """Return the URL of the metrics agent of each node, by the node's address; "" where there is no agent. Blocks."""
    found = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            host, port = str(node["NodeManagerAddress"]), int(node.get("MetricsExportPort") or 0)
            where = f"[{host}]" if ":" in host else host
            found[host] = f"http://{where}:{port}/metrics" if port > 0 else ""
    return found


async def _page(client: httpx.AsyncClient, url: str) -> str | None:
    if not url:
        return None
    try:
        response = await client.get(url)
    except httpx.HTTPError as error:
        logger.warning("The metrics agent at %s doesn't answer: %r", url, error)
        return None
    return response.text if response.status_code == 200 else None


async def _replica(known: Mapping[str, Any], address: EngineAddress | None) -> Replica:
    """Return a replica, with its answer if it has started."""
    state = known.get("state")
    answer = await _in_time(_ask(address), REPLICA_S) if address is not None else None
    return Replica(
        id=known["replica_id"],
        node=known.get("node_ip"),
        condition=_condition(state, address is not None, answer),
        started_at=known.get("start_time_s"),
        answer=answer,
    )


def _condition(state: Any, is_announced: bool, answer: EngineState | None) -> ReplicaCondition:
    if state is not None and (condition := _CONDITIONS.get(state)):
        return condition
    if answer is None:
        return "not_answering" if is_announced else "starting"
    if answer["error"] or answer["load"] is None:
        return "unhealthy"
    return "asleep" if answer["load"]["is_asleep"] else "running"


async def _ask(address: EngineAddress) -> EngineState:
    """Return what a replica says about itself. Raises OSError, also as ConnectionLostError, and ValueError."""
    connection = await open_connection(address.host, address.port)
    try:
        body = b""
        async with aclosing(connection.post(STATE_PATH, [(TOKEN_HEADER, address.token)], b"")) as items:
            async for item in items:
                if isinstance(item, bytes):
                    body += item
                elif item[0] != 200:
                    raise ConnectionError(f"The replica {address.replica} answers {item[0]}.")
        state: EngineState = json.loads(body)
        return state
    finally:
        connection.close()


def _ended(lives: Sequence[Life], alive: set[str], knows_all: bool) -> list[Life]:
    """Return the replicas that ended, the newest first.

    `alive` are the others. With `knows_all`, one without an end that isn't among them was lost.
    """
    ended = [
        life if life.ending else Life(life.base_model, life.replica, life.node, life.started_at, None, "lost")
        for life in lives
        if life.replica not in alive and (life.ending or knows_all)
    ]
    return sorted(ended, key=lambda life: life.ended_at or life.started_at, reverse=True)[:MAX_ENDED]


async def _in_time(answer: Any, deadline_s: float) -> Any:
    """Return the answer, or None without one in time."""
    try:
        async with asyncio.timeout(deadline_s):
            return await answer
    except Exception as error:
        logger.info("A part of the service doesn't answer: %r", error)
        return None
