"""Measurements of a service of one engine and one learner with the built-in tiny model, as `tandem up` starts it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from queueing.service_load import (
    REQUEST_S,
    Client,
    Meter,
    Model,
    Shape,
    measure_completions,
    measure_job,
    measure_looks,
    measure_loops,
)
from queueing.timing import machine

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "faults"))
from service_process import ServiceProcess

COMPLETIONS = ((Shape(1, 16), 1), (Shape(1, 16), 8), (Shape(1, 64), 8), (Shape(8, 16), 8), (Shape(8, 64), 8))
"""Shapes of requests, and the number of open requests."""
JOBS = ((Shape(8, 16), 4, 256), (Shape(8, 16), 16, 256), (Shape(8, 64), 16, 1024), (Shape(8, 64), 4, 256))
"""Completions, groups and packed_sequence_length of jobs that are timed alone."""
LOOPS = ((1, Shape(8, 16), 8, 256), (3, Shape(8, 16), 8, 256), (3, Shape(8, 48), 16, 512))
"""Runs at once, completions, groups and packed_sequence_length of the loops that the simulation has to predict."""


def measure_service(result: dict[str, Any], tell: Callable[[str], None]) -> None:
    """Start the service, measure it and stop it. `result` has what was measured, even if this raises."""
    result |= {"machine": machine(), "looks": [], "completions": [], "jobs": [], "loops": []}
    with tempfile.TemporaryDirectory() as home, ServiceProcess(Path(home), {}) as service:
        key = service.create_key()
        tell("starting the service")
        service.start()
        with service.http(key, REQUEST_S) as http:
            client = Client(http)
            model = client.register("alone")
            client.look(model)
            tell("warming up engine and learner")
            client.wait_for_version(model, 1, client.post_job(model, [client.complete(model, Shape(8, 64))], 256))
            meter = Meter(lambda title: [process.pid for process in service.processes(title)])
            _requests(client, meter, model, result, tell)
            _jobs(client, meter, model, result, tell)
            _loops(client, meter, result, tell)
            result["machine"]["load_average_after"] = machine()["load_average"]


def _requests(client: Client, meter: Meter, model: Model, result: dict[str, Any], tell: Callable[[str], None]) -> None:
    for at_once in (1, 8):
        tell(f"small requests, {at_once} at once")
        result["looks"].append(measure_looks(client, meter, model, 200, at_once))
    for shape, at_once in COMPLETIONS:
        tell(f"completions of {shape}, {at_once} at once")
        count = 40 if shape.completions * shape.tokens < 200 else 24
        result["completions"].append(measure_completions(client, meter, model, shape, count, at_once))


def _jobs(client: Client, meter: Meter, model: Model, result: dict[str, Any], tell: Callable[[str], None]) -> None:
    for step, (shape, groups, packed) in enumerate(JOBS, 2):
        tell(f"a job of {groups} groups of {shape}")
        result["jobs"].append(measure_job(client, meter, model, shape, groups, packed, step))


def _loops(client: Client, meter: Meter, result: dict[str, Any], tell: Callable[[str], None]) -> None:
    for number, (runs, shape, groups, packed) in enumerate(LOOPS):
        tell(f"{runs} RL runs at once, {groups} groups of {shape}")
        models = [client.register(f"loop-{number}-{run}") for run in range(runs)]
        jobs = 8 if runs == 1 else 5
        result["loops"].append(measure_loops(client, meter, models, shape, groups, packed, jobs))
