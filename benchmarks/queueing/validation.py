"""What the simulation predicts for the runs that were measured, and how far off it is."""

from __future__ import annotations

from typing import Any

from queueing.costs import Costs, Fleet, Workload
from queueing.experiments import simulate_runs

Record = dict[str, Any]
HERE = Fleet(artifact_bytes_per_s=0)
"""One engine, one learner, everything else once; one machine, so files needn't move."""


def validate(costs: Costs, measured: Record) -> list[Record]:
    """Each measured loop of RL runs, none of whose numbers the constants were taken from.

    Its machine had two cores for all of the service, its clients, and other work. `slowdown` is how much longer the
    service's processes took than they ran, read from the kernel's scheduler during that loop. The prediction is made
    for processes with a core each, and again with all costs multiplied by the slowdown.
    """
    prompt_tokens = measured["parts"]["tiny"]["prompt_tokens"]
    return [row for loop in measured["service"]["loops"] for row in _compare(costs, loop, prompt_tokens)]


def slowdown(loop: Record) -> float:
    ran, waited = sum(loop["core_s"].values()), sum(loop["waited_s"].values())
    return (ran + waited) / ran


def workload_of(loop: Record, prompt_tokens: int) -> Workload:
    return Workload(
        runs=loop["runs"], groups=loop["groups"], completions=loop["completions"], tokens=loop["tokens"], tokens_cv=0,
        prompt_tokens=prompt_tokens, packed_length=loop["packed_length"], max_policy_lag=0,
    )  # fmt: skip


def _compare(costs: Costs, loop: Record, prompt_tokens: int) -> list[Record]:
    load, factor = workload_of(loop, prompt_tokens), slowdown(loop)
    what = f"{load.runs} run{'s' * (load.runs > 1)}, {load.groups} groups of {load.completions} x {load.tokens} tokens"
    own, slowed = (simulate_runs(c, HERE, load, rounds=10) for c in (costs, costs.slowed(factor)))
    rows = []
    for number, measured, of in (
        ("jobs/s", loop["jobs_per_s"], lambda r: r["jobs_per_s"]),
        ("rollouts/s", loop["rollouts_per_s"], lambda r: r["rollouts_per_s"]),
        ("batch sampled, s", loop["median_rollouts_s"], lambda r: r["batches_s"]["rollouts"]),
        ("job accepted, s", loop["median_accept_s"], lambda r: r["batches_s"]["accept"]),
        ("version there, s", loop["median_version_s"], lambda r: sum(r["stages_s"].values()) + r["noticed_s"]),
    ):
        rows.append({
            "loop": what, "number": number, "measured": measured, "slowdown": factor, "predicted, own cores": of(own),
            "predicted, slowed": of(slowed), "error, slowed": of(slowed) / measured - 1,
        })  # fmt: skip
    return rows
