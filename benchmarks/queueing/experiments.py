"""Simulations of a service: throughput, utilisation and bottleneck."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import simpy

from queueing.costs import Costs, Fleet, Workload
from queueing.resources import Process, Server
from queueing.service import Run, Service

Record = dict[str, Any]


def simulate_runs(costs: Costs, fleet: Fleet, load: Workload, rounds: int = 4, seed: int = 0) -> Record:
    """Simulate RL runs. The first two batches, which all begin at once, aren't measured.

    Measured over `rounds` jobs per run: jobs/s, rollouts/s, seconds of a job's stages, publication, utilisations.
    """
    env = simpy.Environment()
    service = Service(env, costs, fleet, load, seed)
    for number in range(load.runs):
        env.process(service.run(service.new_run(number)))
    warm = 2 * max(load.runs, 2)
    _until(env, lambda: len(service.stages) >= warm)
    first = _Reading(service)
    _until(env, lambda: len(service.stages) >= warm + rounds * max(load.runs, 4))
    stages = service.stages[warm:]
    return first.since() | {
        "fleet": asdict(fleet),
        "load": asdict(load),
        "stages_s": _means(stages),
        "batches_s": _means(service.batches[warm:]),
        "noticed_s": statistics.fmean(service.noticed[warm:] or [0.0]),
    }


def simulate_rollouts(
    costs: Costs, fleet: Fleet, load: Workload, at_once: int, rounds: int = 6, seed: int = 0
) -> Record:
    """Simulate `at_once` groups always open and no training: the capacity of the path of a completion."""
    env = simpy.Environment()
    service = Service(env, costs, fleet, load, seed)

    def ask(run: Run) -> Process:
        while True:
            yield from service.request(run)

    for number in range(at_once):
        env.process(ask(service.new_run(number)))
    _until(env, lambda: len(service.request_s) >= 2 * at_once)
    first = _Reading(service)
    _until(env, lambda: len(service.request_s) >= (2 + rounds) * at_once)
    return first.since() | {"fleet": asdict(fleet), "at_once": at_once}


def simulate_publication(costs: Costs, fleet: Fleet, requests_per_engine: int, load: Workload) -> list[float]:
    """Return the seconds from publication of a version until each engine has it, if all rollouts request it at once."""
    env = simpy.Environment()
    service = Service(env, costs, fleet, load)
    run = service.new_run(0)
    run.version, run.published_at[1] = 1, 0.0
    for _ in range(requests_per_engine * fleet.engines):
        env.process(service.request(run))
    env.run(until=None)
    return sorted(service.ready)


def _means(records: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.fmean(record[key] for record in records) for key in records[0]}


def bottleneck(utilisation: dict[str, float]) -> str:
    return max(utilisation, key=lambda name: utilisation[name])


def quantiles(values: Sequence[float], *shares: float) -> list[float]:
    """Return, for each share, the smallest of the sorted values that at least this share of them doesn't exceed."""
    return [values[min(len(values) - 1, max(0, -int(-share * len(values) // 1) - 1))] for share in shares]


class _Reading:
    """The work of a service since this object was made."""

    def __init__(self, service: Service):
        self._service, self._before, self._began = service, _counters(service), service.env.now
        self._num_requests, self._num_ready = len(service.request_s), len(service.ready)

    def since(self) -> Record:
        service, elapsed = self._service, self._service.env.now - self._began
        after = _counters(service)
        used = {name: after[name] - self._before[name] for name in after}
        fleet, costs = service.fleet, service.costs
        capacity = {
            "proxy": fleet.proxies, "API": fleet.api_replicas, "checks": fleet.api_replicas, "preparation": 1,
            "store": fleet.store_writers, "engine processes": fleet.engines, "learners": fleet.base_models,
            "engines": fleet.engines * costs.engine_tokens_per_s,
        }  # fmt: skip
        utilisation = {name: used[name] / elapsed / capacity[name] for name in capacity}
        requests, ready = service.request_s[self._num_requests :], sorted(service.ready[self._num_ready :])
        return {
            "seconds": elapsed,
            "jobs_per_s": used["jobs"] / elapsed,
            "rollouts_per_s": used["rollouts"] / elapsed,
            "tokens_per_s": used["engines"] / elapsed,
            "request_median_s": statistics.median(requests) if requests else None,
            "ready_s": dict(zip(("p50", "p99"), quantiles(ready, 0.5, 0.99), strict=True)) if ready else None,
            "utilisation": utilisation,
            "bottleneck": bottleneck(utilisation),
        }


def _counters(service: Service) -> dict[str, float]:
    def busy(servers: Sequence[Server]) -> float:
        return sum(server.busy_s for server in servers)

    return {
        "proxy": busy(service.proxies),
        "API": busy(service.apis),
        "checks": busy(service.checkers),
        "preparation": service.preparation.busy_s,
        "store": service.store.busy_s,
        "engine processes": busy([engine.front for engine in service.engines]),
        "engines": sum(engine.core.done for engine in service.engines),
        "learners": sum(base.held_s for base in service.bases),
        "jobs": len(service.stages),
        "rollouts": service.rollouts_done,
    }


def _until(env: simpy.Environment, holds: Callable[[], bool]) -> None:
    while not holds():
        env.step()
