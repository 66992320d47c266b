"""The simulated experiments: sizes, loads, and the gain of each remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from queueing.costs import Costs, Fleet, Workload
from queueing.experiments import quantiles, simulate_publication, simulate_rollouts, simulate_runs

Record = dict[str, Any]
Tell = Callable[[str], None]
ENGINES = (1, 8, 64)
LEARNERS = (1, 2, 4, 8, 16, 64)
OPEN_GROUPS = (1, 8, 64, 256)
ROUNDS = 2
"""Measured jobs of each run, after as many that warm up."""
TINY_LOAD = Workload(
    runs=16, groups=16, completions=8, tokens=24, tokens_cv=0.5, prompt_tokens=25, packed_length=256, max_policy_lag=1
)
LARGE_LOAD = Workload(
    runs=8, groups=32, completions=8, tokens=1500, tokens_cv=0.7, prompt_tokens=500, packed_length=8192,
    max_policy_lag=1,
)  # fmt: skip


def assumed_large(costs: Costs) -> Costs:
    """Return the costs of a model of 4 billion parameters with an H100-class accelerator per engine and learner.

    Its speeds are assumptions. The costs of Python per request, token and transaction are measured.
    """
    adapter = 132e6  # rank 16 on all linear layers of Qwen3-4B: 33.0 million float32
    return replace(
        costs,
        engine_tokens_per_s=8000,  # 131 alone, 4130 with 64 sequences, 6480 with 256
        engine_half=60,
        engine_max_seqs=256,
        adapter_load_s=0.3,
        learner_token_s=1 / 15_000,  # 6 x 4e9 operations per token (checkpointing) at 36 % of 990 TFLOP/s
        allreduce_latency_s=20e-6,
        allreduce_bytes_per_s=25e9,
        gradient_bytes=adapter,
        checkpoint_bytes=3 * adapter,
        pulled_bytes=adapter,
    )


LARGE_FLEET = Fleet(node_bytes_per_s=1.25e9, artifact_bytes_per_s=5e9)
"""10 Gbit/s into each node, 40 Gbit/s out of the artifact store: assumptions."""
TINY_FLEET = Fleet(node_bytes_per_s=1.25e9, artifact_bytes_per_s=5e9)


def study(costs: Costs, fleet: Fleet, load: Workload, tell: Tell) -> dict[str, list[Record]]:
    return {
        "rollouts": rollouts_alone(costs, fleet, load, tell),
        "runs": runs_by_size(costs, fleet, load, tell),
        "publication": publication(costs, fleet, load, tell),
        "remedies": remedies(costs, fleet, load, tell),
    }


def rollouts_alone(costs: Costs, fleet: Fleet, load: Workload, tell: Tell) -> list[Record]:
    """Simulate completions without training, by open groups, with one and with eight API replicas and proxies."""
    records = []
    for engines in ENGINES:
        for replicas in (1, 8):
            for at_once in OPEN_GROUPS:
                tell(f"rollouts: {engines} engines, {replicas} API replicas, {at_once} groups open")
                size = replace(fleet, engines=engines, api_replicas=replicas, proxies=replicas)
                records.append(simulate_rollouts(costs, size, load, at_once, rounds=max(2, 32 // at_once)))
    return records


def runs_by_size(costs: Costs, fleet: Fleet, load: Workload, tell: Tell) -> list[Record]:
    records = []
    for engines in ENGINES:
        for learners in LEARNERS:
            tell(f"RL runs: {engines} engines, {learners} learners")
            records.append(
                simulate_runs(costs, replace(fleet, engines=engines, learners=learners), load, rounds=ROUNDS)
            )
    return records


def publication(costs: Costs, fleet: Fleet, load: Workload, tell: Tell) -> list[Record]:
    """Simulate one version that all engines request at once."""
    records = []
    for engines in ENGINES:
        for bandwidth in (1.25e9, 5e9, None):
            tell(f"publication: {engines} engines")
            size = replace(fleet, engines=engines, artifact_bytes_per_s=bandwidth)
            ready = simulate_publication(costs, size, 4, replace(load, tokens=1, tokens_cv=0))
            p50, p99 = quantiles(ready, 0.5, 0.99)
            records.append({"engines": engines, "artifact_bytes_per_s": bandwidth,
                            "megabytes": costs.pulled_bytes / 1e6, "p50_s": p50, "p99_s": p99,
                            "engines_ready": len(ready)})  # fmt: skip
    return records


def remedies(costs: Costs, fleet: Fleet, load: Workload, tell: Tell) -> list[Record]:
    """Simulate changes at 64 engines and 64 learners, cumulatively and each one alone."""
    full = replace(fleet, engines=64, learners=64)
    load = replace(load, runs=16)
    changes: list[tuple[str, dict[str, Any]]] = [
        ("unchanged", {}),
        ("+ 8 API replicas and proxies", {"api_replicas": 8, "proxies": 8}),
        ("+ kept_state_bytes: 16 GiB", {"kept_state_bytes": 16 << 30}),
        ("+ 4 base models of 16 learners", {"base_models": 4, "learners": 16}),
        ("+ PostgreSQL", {"store": "postgresql"}),
    ]
    records, size = [], full
    for name, options in changes:
        tell(f"remedies: {name}")
        size = replace(size, **options)
        records.append({"change": name, **simulate_runs(costs, size, load, rounds=ROUNDS)})
    for name, options in changes[1:]:
        tell(f"remedies: {name}, alone")
        alone = replace(full, **options)
        records.append(
            {"change": name.removeprefix("+ ") + ", alone", **simulate_runs(costs, alone, load, rounds=ROUNDS)}
        )
    return records


def sensitivity(costs: Costs, fleet: Fleet, load: Workload, tell: Tell) -> list[Record]:
    """Halve and double each assumption, at 8 engines and 8 learners."""
    base = replace(fleet, engines=8, learners=8)
    records = [{"assumption": "all as assumed", "factor": 1.0, **simulate_runs(costs, base, load, rounds=ROUNDS)}]
    for factor in (0.5, 2.0):
        for name, changed, of_load in (
            ("engine tokens/s", replace(costs, engine_tokens_per_s=costs.engine_tokens_per_s * factor), load),
            ("learner tokens/s", replace(costs, learner_token_s=costs.learner_token_s / factor), load),
            ("tokens of a completion", costs, replace(load, tokens=load.tokens * factor)),
            ("preparation s/token", replace(costs, prepare=replace(costs.prepare, each=costs.prepare.each * factor)),
             load),
            ("adapter size", replace(costs, pulled_bytes=costs.pulled_bytes * factor, gradient_bytes=factor
             * costs.gradient_bytes, checkpoint_bytes=costs.checkpoint_bytes * factor), load),
        ):  # fmt: skip
            tell(f"sensitivity: {name} x {factor:g}")
            records.append(
                {"assumption": name, "factor": factor, **simulate_runs(changed, base, of_load, rounds=ROUNDS)}
            )
    return records
