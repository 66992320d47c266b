"""Predictions of the simulation against measurements of a running service."""

from __future__ import annotations

from typing import Any

from queueing.costs import Costs, Fleet, Workload
from queueing.experiments import simulate_rollouts, simulate_runs

Record = dict[str, Any]
HERE = Fleet(artifact_bytes_per_s=0)
"""One of each part on one machine, so files needn't move."""


def validate(costs: Costs, measured: Record) -> list[Record]:
    """Compare predicted and measured elapsed times.

    The constants don't come from these times, but from processor times of the same requests and from parts timed in
    another process. The measured service shared two cores with its clients and other work. There are two predictions:
    with a core for each process, and with all costs multiplied by the measured `slowdown`.
    """
    prompt_tokens = measured["parts"]["tiny"]["prompt_tokens"]
    service = measured["service"]
    rows = [_rollouts(costs, record, prompt_tokens) for record in service["completions"]]
    rows += [_job(costs, record, prompt_tokens) for record in service["jobs"]]
    return rows + [_loop(costs, record, prompt_tokens) for record in service["loops"]]


def slowdown(record: Record) -> float:
    """Return elapsed over processor time of the process that ran most, from the kernel's scheduler. This is rough: it
    counts all threads, and other processes waited more or less."""
    busiest = max(record["core_s"], key=lambda role: record["core_s"][role])
    return 1 + float(record["waited_s"][busiest] / record["core_s"][busiest])


def workload_of(record: Record, prompt_tokens: int, runs: int = 1) -> Workload:
    return Workload(
        runs=runs, groups=record.get("groups", 1), completions=record["completions"], tokens=record["tokens"],
        tokens_cv=0, prompt_tokens=prompt_tokens, packed_length=record.get("packed_length", 256), max_policy_lag=0,
    )  # fmt: skip


def _rollouts(costs: Costs, record: Record, prompt_tokens: int) -> Record:
    load = workload_of(record, prompt_tokens)
    own, slowed = (simulate_rollouts(c, HERE, load, record["at_once"])["rollouts_per_s"]
                   for c in (costs, costs.slowed(slowdown(record))))  # fmt: skip
    what = f"{record['at_once']} x {load.completions} completions of {load.tokens} tokens"
    return _row(what, "rollouts/s", record, record["requests"] * load.completions / record["wall_s"], own, slowed)


def _job(costs: Costs, record: Record, prompt_tokens: int) -> Record:
    """Predict one job alone, from its acceptance until a waiting client learns of its version."""
    load = workload_of(record, prompt_tokens)

    def jobs_per_s(of: Costs) -> float:
        result = simulate_runs(of, HERE, load)
        return 1 / float(sum(result["stages_s"].values()) + result["noticed_s"])

    own, slowed = jobs_per_s(costs), jobs_per_s(costs.slowed(slowdown(record)))
    what = f"a job of {load.groups} groups of {load.completions} x {load.tokens} tokens"
    return _row(what, "jobs/s", record, 1 / record["version_s"], own, slowed)


def _loop(costs: Costs, record: Record, prompt_tokens: int) -> Record:
    load = workload_of(record, prompt_tokens, record["runs"])
    own, slowed = (simulate_runs(c, HERE, load)["jobs_per_s"] for c in (costs, costs.slowed(slowdown(record))))
    what = f"{load.runs} RL runs, {load.groups} groups of {load.completions} x {load.tokens} tokens"
    return _row(what, "jobs/s", record, record["jobs_per_s"], own, slowed)


def _row(what: str, unit: str, record: Record, measured: float, own: float, slowed: float) -> Record:
    return {"what": what, "unit": unit, "measured": measured, "slowdown": slowdown(record), "predicted, slowed": slowed,
            "error": slowed / measured - 1, "predicted, own cores": own}  # fmt: skip
