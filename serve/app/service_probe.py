"""How the parts of the service are, asked by a process that isn't bound to them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from tandem.cluster.config import TandemConfig
from tandem.serve.alerts.service_rules import EngineState
from tandem.serve.api.services import CoordinatorStatus
from tandem.serve.app.coordinator_replica import COORDINATOR
from tandem.serve.app.engines.health import ANSWER_S, EngineHealth, not_finite_fault
from tandem.serve.app.engines.replica import engine_deployment_name

ASK_S = 15.0


class ServiceProbe:
    """See `tandem.serve.alerts.service_rules.Probe`. Use it in one thread, and in a replica of the application."""

    def __init__(self, config: TandemConfig):
        self._application = serve.get_replica_context().app_name
        self._replicas = {base.name: base.engine.replicas for base in config.base_models}
        self._loop = asyncio.new_event_loop()

    def engines(self) -> Mapping[str, EngineState]:
        handles = {base: self._handle(engine_deployment_name(base)) for base in self._replicas}
        return self._loop.run_until_complete(asyncio.wait_for(self._engines(handles), ASK_S))

    async def _engines(self, handles: Mapping[str, DeploymentHandle[Any]]) -> Mapping[str, EngineState]:
        faults = await EngineHealth(self._application, handles, self._replicas).faults()
        states = {}
        for base, handle in handles.items():
            refused, fault = await _refused(handle), faults.get(base)
            # A fault that concerns single versions is theirs alone.
            states[base] = EngineState(None if refused and fault == not_finite_fault(refused) else fault, refused)
        return states

    def coordinator(self) -> Mapping[str, CoordinatorStatus]:
        status: Mapping[str, CoordinatorStatus] = self._handle(COORDINATOR).status.remote().result(timeout_s=ANSWER_S)
        return status

    def _handle(self, deployment: str) -> DeploymentHandle[Any]:
        return serve.get_deployment_handle(deployment, self._application)


async def _refused(handle: DeploymentHandle[Any]) -> tuple[str, ...]:
    try:
        async with asyncio.timeout(ANSWER_S):
            return tuple(await handle.not_finite.remote())
    except Exception:  # the fault of an engine that doesn't answer is known already
        return ()
