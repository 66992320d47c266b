"""Engines that can't answer at present, and the cause as far as Ray Serve knows it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray.serve._private.common import DeploymentStatus, ReplicaState
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import DeploymentStatusOverview

from tandem.serve.api.services import EngineFault
from tandem.serve.app.serve_state import application_status

MAX_AGE_S = 2.0
MAX_NAMED = 5
ANSWER_S = 3.0
# States in which a replica takes requests; the controller calls one RECOVERING that it found after its own restart.
TAKES_REQUESTS = (
    ReplicaState.RUNNING,
    ReplicaState.RECOVERING,
    ReplicaState.UPDATING,
    ReplicaState.PENDING_MIGRATION,
)
_REMEDY = "add nodes or request less"
_NO_ROOM = re.compile(r"Resources required for each replica: (\{.*?\}|\[.*?\]), total resources available: (\{.*?\})\.")


class EngineHealth:
    """Checks the engines of all base models: `await engine_health.faults()`.

    Frequent callers share one check in MAX_AGE_S, and only one runs at a time: Serve may never answer.
    """

    def __init__(self, application: str, handles: Mapping[str, DeploymentHandle[Any]], num_replicas: Mapping[str, int]):
        """`handles` and `num_replicas` have base models as keys."""
        self._application, self._handles, self._num_replicas = application, handles, num_replicas
        self._asking: asyncio.Task[dict[str, EngineFault]] | None = None
        self._asked_at = 0.0

    async def faults(self) -> dict[str, EngineFault]:
        """Return the fault of each base model that lacks engines or whose engine doesn't answer."""
        if self._asking is None or (self._asking.done() and time.monotonic() - self._asked_at > MAX_AGE_S):
            self._asked_at = time.monotonic()
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> dict[str, EngineFault]:
        application = await asyncio.to_thread(application_status, self._application)
        deployments = application.deployments if application else {}
        faults = await asyncio.gather(
            *(self._fault(base, deployments.get(handle.deployment_name)) for base, handle in self._handles.items())
        )
        return {base: fault for base, fault in zip(self._handles, faults, strict=True) if fault}

    async def _fault(self, base: str, deployment: DeploymentStatusOverview | None) -> EngineFault | None:
        if fault := deployment_fault(deployment, self._num_replicas[base]):
            return fault
        # Serve reports a replica as healthy until several checks have failed.
        answer = self._handles[base].not_finite.remote()
        try:
            async with asyncio.timeout(ANSWER_S):
                digests = await answer
        except TimeoutError:
            answer.cancel()  # type: ignore[no-untyped-call]
            return EngineFault("its engine doesn't answer; completions wait for it.")
        except Exception:
            return EngineFault("its engine has died and is being replaced; completions wait for it.")
        return not_finite_fault(digests) if digests else None


def deployment_fault(deployment: DeploymentStatusOverview | None, num_replicas: int) -> EngineFault | None:
    """Return why a deployment of engines doesn't run all its replicas, or None if it does."""
    states = deployment.replica_states if deployment else {}
    num_running = sum(states.get(state, 0) for state in TAKES_REQUESTS)
    if num_running >= num_replicas:
        return None
    running = "its engine isn't running" if num_replicas == 1 else f"{num_running} of {num_replicas} engines run"
    waiting = "completions wait for it" if num_replicas == 1 else "completions wait for one"
    sentence = f"{running}; " + (f"{waiting}; " if num_running == 0 else "") + f"{_why(deployment)}."
    return EngineFault(sentence, completions_wait=num_running == 0)


def not_finite_fault(digests: Sequence[str]) -> EngineFault:
    """Return a fault that concerns the users of these versions alone. A digest tells a stranger nothing."""
    named = ", ".join(digest[:12] for digest in digests[:MAX_NAMED])
    more = f" and {len(digests) - MAX_NAMED} more" if len(digests) > MAX_NAMED else ""
    plural = "s" if len(digests) > 1 else ""
    return EngineFault(
        f"its engine rejects completions of the policy version{plural} {named}{more}, whose logits aren't finite.",
        completions_wait=False,
    )


def _why(deployment: DeploymentStatusOverview | None) -> str:
    """Return the cause without details that may be private, like a traceback."""
    if deployment is None:
        return "Ray Serve hasn't started it yet"
    if room := _NO_ROOM.search(deployment.message):
        needed, free = (json.loads(part) for part in room.groups())
        if isinstance(needed, list):  # its bundles; Serve doesn't say then how much is free
            together = " and ".join(map(_resources, needed))
            return f"a replica needs {together} on one node, which no node has free: {_REMEDY}"
        return f"a replica needs {_resources(needed)} and the cluster has {_resources(free)} free: {_REMEDY}"
    if deployment.status in (DeploymentStatus.UNHEALTHY, DeploymentStatus.DEPLOY_FAILED):
        return "it failed and is being restarted; its log has the cause"
    return "it is starting"


def _resources(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in amounts.items()) or "nothing"
