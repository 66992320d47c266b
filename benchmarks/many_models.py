"""Many models on one base model: throughput of small jobs at once and in turn, and a small job beside a big one.

    .venv/bin/python benchmarks/many_models.py --output benchmarks/results/many_models.json

Starts a service of one engine and one learner with the built-in tiny model, as `tandem up` does, and trains
`--models` models with jobs of 2 groups of 4 completions:

- `throughput`: jobs per minute with one job after the other, where each waits for the version of the one before, and
  with the jobs of all models posted at once; by turns in each round, so that a slow phase of the machine hits both;
- `stages`: where a job's seconds go, from the times that the service records, and the processor seconds of each of
  the service's processes;
- `beside_a_big_job`: seconds of small jobs of one model, one after the other, alone and while another model trains a
  job of many gradient steps.

The JSON also has the machine, with the load of what else ran.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from queueing.service_load import REQUEST_S, Client, Meter, Model, Shape
from queueing.timing import machine
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))
from service_process import ServiceProcess

GROUPS, SMALL, PACKED = 2, Shape(4, 16), 256
BIG, BIG_PACKED = Shape(8, 64), 768
console = Console(highlight=False)


def tell(line: str) -> None:
    console.print(f"{time.strftime('%T')}  {line}")


@dataclass
class Tenant:
    """A model with rollouts to train on; each job makes its next version."""

    client: Client
    model: Model
    groups: list[list[dict[str, Any]]]
    packed: int
    step: int = field(default=0, init=False)

    def post(self) -> str:
        self.step += 1
        return self.client.post_job(self.model, self.groups, self.packed)

    def train(self) -> str:
        """Post a job, wait for its version and return its id."""
        job = self.post()
        self.client.wait_for_version(self.model, self.step, job)
        return job


def make_tenant(client: Client, name: str, groups: int, shape: Shape, packed: int) -> Tenant:
    model = client.register(name)
    return Tenant(client, model, [client.complete(model, shape) for _ in range(groups)], packed)


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure_throughput(tenants: Sequence[Tenant], meter: Meter, rounds: int) -> dict[str, Any]:
    """Train all tenants in turn and at once, `rounds` times."""
    found: dict[str, Any] = {"models": len(tenants), "rounds": []}
    jobs: dict[str, list[str]] = {"in_turn": [], "at_once": []}
    used: dict[str, list[dict[str, Any]]] = {"in_turn": [], "at_once": []}
    with ThreadPoolExecutor(len(tenants)) as pool:
        for _ in range(rounds):
            seconds = {}
            for way, train in (("in_turn", map), ("at_once", pool.map)):
                reading: dict[str, Any] = {}
                with meter.reading(reading):
                    jobs[way] += train(Tenant.train, tenants)
                seconds[way] = reading["wall_s"]
                used[way].append(reading["core_s"])
            found["rounds"].append(seconds | {"speedup": seconds["in_turn"] / seconds["at_once"]})
            tell(", ".join(f"{name} {value:.2f}" for name, value in found["rounds"][-1].items()))
    for way in jobs:
        median_s = statistics.median(each[way] for each in found["rounds"])
        found[way] = {
            "jobs_per_minute": 60 * len(tenants) / median_s,
            "stages_s": stages(tenants[0].client, jobs[way]),
            "core_s_per_job": {
                role: statistics.median(each[role] for each in used[way]) / len(tenants) for role in used[way][0]
            },
        }
    found["speedup"] = statistics.median(each["speedup"] for each in found["rounds"])
    return found


def stages(client: Client, jobs: Sequence[str]) -> dict[str, float]:
    """Return the median seconds of each part of a job, from the times that the service records."""
    parts: dict[str, list[float]] = {}
    for job in jobs:
        described, events = client.job(job), client.events(job)
        at = {event["type"]: datetime.fromisoformat(event["created_at"]) for event in events}
        times = {
            "queued": described["created_at"], "prepare": described["started_at"], "first_step": at["training_started"],
            "publish": at["gradient_step"], "end": described["ended_at"],
        }  # fmt: skip
        moments = [(name, datetime.fromisoformat(str(when))) for name, when in times.items()]
        for (name, begin), (_, end) in pairwise(moments):
            parts.setdefault(name, []).append((end - begin).total_seconds())
    return {name: statistics.median(seconds) for name, seconds in parts.items()}


def measure_fairness(small: Tenant, big: Tenant, count: int) -> dict[str, Any]:
    """Time `count` small jobs alone, and at least as many beside big jobs of another model."""
    solo = [seconds_of(small.train) for _ in range(count)]
    big_solo = seconds_of(big.train)
    beside: list[float] = []
    big_beside: list[float] = []
    while len(beside) < count:
        began, job = time.perf_counter(), big.post()
        while small.client.job(job)["state"] in ("queued", "running"):
            beside.append(seconds_of(small.train))
        big_beside.append(time.perf_counter() - began)
    found: dict[str, Any] = {
        name: {"count": len(seconds), "median_s": statistics.median(seconds), "p95_s": percentile(seconds, 0.95)}
        for name, seconds in (("alone", solo), ("beside", beside))
    }
    found["ratio_of_p95"] = found["beside"]["p95_s"] / found["alone"]["p95_s"]
    return found | {"big_alone_s": big_solo, "big_beside_s": statistics.median(big_beside)}


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values don't exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True)
class Load:
    models: int = 8
    rounds: int = 4
    alone: int = 20
    big_groups: int = 24

    def measure(self, client: Client, meter_of: Callable[[], Meter]) -> dict[str, Any]:
        """Measure a running service."""
        tell("sampling")
        tenants = [make_tenant(client, f"small-{k}", GROUPS, SMALL, PACKED) for k in range(self.models)]
        big = make_tenant(client, "big", self.big_groups, BIG, BIG_PACKED)
        for tenant in tenants[:2]:
            tenant.train()  # warm up
        return {
            "throughput": measure_throughput(tenants, meter_of(), self.rounds),
            "beside_a_big_job": measure_fairness(tenants[0], big, self.alone),
        }


def measure(load: Load) -> dict[str, Any]:
    found: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as home, ServiceProcess(Path(home), {}) as service:
        key = service.create_key()
        tell("starting the service")
        service.start()
        with service.http(key, REQUEST_S) as http:
            found |= load.measure(
                Client(http), lambda: Meter(lambda title: [process.pid for process in service.processes(title)])
            )
    found["machine"]["load_average_after"] = machine()["load_average"]
    return found


def show(found: dict[str, Any]) -> None:
    throughput, fairness = found["throughput"], found["beside_a_big_job"]
    table = Table("", "in turn", "at once", title=f"{throughput['models']} models: {throughput['speedup']:.2f} times")
    for name, key in (("", "jobs_per_minute"), ("s: ", "stages_s"), ("core s: ", "core_s_per_job")):
        values = [throughput[way][key] for way in ("in_turn", "at_once")]
        if isinstance(values[0], float):
            values = [{key.replace("_", " "): value} for value in values]
        for part in values[0]:
            table.add_row(name + part, *(f"{value[part]:.3f}" for value in values))
    console.print(table)
    table = Table("", "median s", "p95 s", title=f"a small job beside a big one: {fairness['ratio_of_p95']:.2f} times")
    for name in ("alone", "beside"):
        table.add_row(name, f"{fairness[name]['median_s']:.2f}", f"{fairness[name]['p95_s']:.2f}")
    console.print(table, f"the big job: {fairness['big_alone_s']:.1f} s alone, {fairness['big_beside_s']:.1f} s beside")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, about in (
        ("models", "models that train at once"),
        ("rounds", "rounds of all models in turn and at once"),
        ("alone", "small jobs that are timed alone, and beside a big one"),
        ("big-groups", "groups of 8 completions of the big job"),
    ):
        default = getattr(Load, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{about} (default: {default})")
    parser.add_argument("--output", type=Path, help="a JSON file")
    options = parser.parse_args()
    found = measure(Load(options.models, options.rounds, options.alone, options.big_groups))
    show(found)
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
