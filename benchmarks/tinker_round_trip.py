"""Milliseconds of forward_backward and optim_step through the `tinker` SDK, over the same learner called directly.

    .venv/bin/python benchmarks/tinker_round_trip.py --output benchmarks/results/tinker_round_trip.json

Starts `tandem up` with the tiny model, and by turns takes a step through the SDK and with a learner of the same class,
settings and model in this process, which gets packed rows: neither decodes, packs nor stores anything. Both calls of a
step through the SDK are sent before the first answer. A cell is a number of datums and their length in tokens. The JSON
has for each, as medians of the rounds:

- `sdk_ms` and `direct_ms`; `more_ms`, the median of their differences by pairs, with its quartiles; `ratio`, that of
  their ratios;
- `parts_ms`, the way through the parts by the clock, from the time of submission to the last result: `sdk_sends` until
  the request leaves the SDK; `api_accepts` until the call is durable; `first_call` and `second_call` until it has its
  answer, in the coordinator and the learner; `result` until the SDK has it; `sdk_returns` until the caller does;
- `cpu_ms`: processor time of a step by process, also of this one as `client`, and of the `direct` one;
- `bytes`: of the request.

On a busy machine the milliseconds of the clock include waits for a core; the processor time doesn't.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import httpx
import torch
from queueing.timing import machine, usage
from rich.console import Console
from rich.table import Table

from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import TINY
from tandem.cluster.learners.worker import LearnerWorker
from tandem.rl.batch import default_packed_length
from tandem.rl.datums.datum import Datum
from tandem.rl.datums.rows import DatumRow, pack_datums
from tandem.rl.settings import AdamStep

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))
from fault_kinds import API, COORDINATOR, LEARNER, PROXY
from service_process import ServiceProcess

LOSS: Literal["importance_sampling"] = "importance_sampling"
LEARNING_RATE = 1e-5
VOCABULARY = 500
PROCESSES = {"proxy": PROXY, "api": API, "coordinator": COORDINATOR, "learner": LEARNER}
PARTS = ("sdk_sends", "api_accepts", "first_call", "second_call", "result", "sdk_returns")


@dataclass(frozen=True)
class Cell:
    num_datums: int
    num_tokens: int

    def __str__(self) -> str:
        return f"{self.num_datums} datums of {self.num_tokens} tokens"

    def datums(self) -> list[Datum]:
        generator = torch.Generator().manual_seed(0)
        return [self._datum(generator) for _ in range(self.num_datums)]

    def _datum(self, generator: torch.Generator) -> Datum:
        ids = torch.randint(3, VOCABULARY, (self.num_tokens + 1,), generator=generator)
        values = {
            "logprobs": torch.rand(self.num_tokens, generator=generator) - 6.5,
            "advantages": torch.randn(self.num_tokens, generator=generator),
        }
        return Datum(ids[:-1], ids[1:], values)


CELLS = (Cell(64, 256), Cell(1, 16))


@dataclass(frozen=True)
class Exchange:
    """One request of the SDK."""

    path: str
    began: float
    ended: float
    num_bytes: int


@contextmanager
def exchanges() -> Iterator[list[Exchange]]:
    """Keep the times of all requests that leave the SDK, by the wall clock."""
    found: list[Exchange] = []
    send = httpx.AsyncClient.send

    async def timed(self: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        began = time.time()
        try:
            return await send(self, request, **options)
        finally:
            found.append(Exchange(request.url.path, began, time.time(), len(request.content)))

    httpx.AsyncClient.send = timed  # type: ignore[method-assign]
    try:
        yield found
    finally:
        httpx.AsyncClient.send = send  # type: ignore[method-assign]


class ThroughSdk:
    """Takes steps through the service."""

    def __init__(self, service: ServiceProcess, key: str, cell: Cell):
        import tinker

        self._types = tinker.types
        self._store = service.home / "tandem.db"
        self._service = tinker.ServiceClient(base_url=service.url, api_key=f"tml-{key}")
        self._training = self._service.create_lora_training_client(TINY.name, TINY.lora.r, seed=1).result()
        self._datums = [self._datum(datum) for datum in cell.datums()]
        self._seq = 0

    def _datum(self, datum: Datum) -> Any:
        inputs = {"target_tokens": datum.targets, **datum.values}
        tensors = {name: self._types.TensorData.from_torch(values) for name, values in inputs.items()}
        return self._types.Datum(self._types.ModelInput.from_ints(datum.token_ids.tolist()), tensors)

    def step(self) -> tuple[float, dict[str, float], int]:
        """Return the seconds of a step, of its parts, and the bytes of its request."""
        with exchanges() as found:
            began, clock = time.time(), time.perf_counter()
            first = self._training.forward_backward(self._datums, LOSS)
            second = self._training.optim_step(self._types.AdamParams(learning_rate=LEARNING_RATE))
            first.result()
            second.result()
            seconds = time.perf_counter() - clock
        self._seq += 2
        return seconds, *self._parts(began, began + seconds, found)

    def close(self) -> None:
        """End the session, which sends heartbeats until then."""
        self._service.close("success").result()

    def _parts(self, began: float, ended: float, found: list[Exchange]) -> tuple[dict[str, float], int]:
        own = [exchange for exchange in found if "heartbeat" not in exchange.path and "telemetry" not in exchange.path]
        [sent] = [exchange for exchange in own if exchange.path.endswith("/forward_backward")]
        arrived, answered = zip(*(self._times(seq) for seq in (self._seq - 1, self._seq)), strict=True)
        result = max(exchange.ended for exchange in own)
        at = (began, sent.began, arrived[0], answered[0], answered[1], result, ended)
        return {name: later - at[i] for i, (name, later) in enumerate(zip(PARTS, at[1:], strict=True))}, sent.num_bytes

    def _times(self, seq: int) -> tuple[float, float]:
        """Return when a call was durable and when it had its answer."""
        with sqlite3.connect(self._store) as store:
            query = "SELECT arrived_at, answered_at FROM tinker_calls WHERE run_id = ? AND seq = ?"
            row = store.execute(query, (self._training.model_id, seq)).fetchone()
        arrived, answered = (datetime.fromisoformat(value).replace(tzinfo=UTC).timestamp() for value in row)
        return arrived, answered


class Direct:
    """Takes steps with a learner in this process."""

    def __init__(self, directory: Path, cell: Cell):
        self._worker = LearnerWorker(0, 1, TINY, str(directory))
        self._worker.start(None, timeout_s=60)
        self._rows = _packed(cell)

    def step(self) -> float:
        learner, clock = self._worker._learner, time.perf_counter()
        learner.accumulate(self._rows, LOSS, {})
        learner.apply_adam(AdamStep(learning_rate=LEARNING_RATE))
        return time.perf_counter() - clock


def _packed(cell: Cell) -> list[DatumRow]:
    """Return a cell's datums in rows like those of the service."""
    length = default_packed_length(cell.num_tokens, ResolvedBaseModel(TINY).max_model_len)
    return pack_datums(cell.datums(), length, shares_prefixes=True)


def measure(
    service: ServiceProcess, key: str, cell: Cell, rounds: int, directory: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return the figures of a cell. The first two rounds aren't counted."""
    through, direct = ThroughSdk(service, key, cell), Direct(directory, cell)
    pids = {name: [process.pid for process in service.processes(title)] for name, title in PROCESSES.items()}
    pids["client"] = [os.getpid()]
    sdk: list[float] = []
    alone: list[float] = []
    parts: list[dict[str, float]] = []
    cpu: dict[str, float] = defaultdict(float)
    num_bytes = 0
    with closing(through):
        for number in range(-2, rounds):
            progress(f"{cell}: round {number + 1} of {rounds}")
            before = ran(pids)
            seconds, of_parts, num_bytes = through.step()
            between = ran(pids)
            seconds_alone = direct.step()
            if number >= 0:
                sdk.append(1e3 * seconds)
                alone.append(1e3 * seconds_alone)
                parts.append(of_parts)
                for name, used in between.items():
                    cpu[name] += used - before[name]
                cpu["direct"] += ran(pids)["client"] - between["client"]
    cpu_ms = {name: round(1e3 * used / rounds, 2) for name, used in cpu.items()}
    told = {"datums": cell.num_datums, "tokens": cell.num_tokens, "bytes": num_bytes}
    return {**told, **figures(sdk, alone, parts), "cpu_ms": cpu_ms}


def ran(pids: dict[str, list[int]]) -> dict[str, float]:
    """Return the processor seconds of each group of processes so far."""
    return {name: usage(own).ran_s for name, own in pids.items()}


def figures(sdk: list[float], direct: list[float], parts: list[dict[str, float]]) -> dict[str, Any]:
    """Return medians of the rounds, given in milliseconds, and of the parts, given in seconds."""
    more = [through - alone for through, alone in zip(sdk, direct, strict=True)]
    low, middle, high = statistics.quantiles(more, n=4, method="inclusive")
    return {
        "sdk_ms": round(statistics.median(sdk), 2),
        "direct_ms": round(statistics.median(direct), 2),
        "more_ms": round(middle, 2),
        "more_ms_quartiles": [round(low, 2), round(high, 2)],
        "ratio": round(statistics.median(a / b for a, b in zip(sdk, direct, strict=True)), 4),
        "parts_ms": {name: round(1e3 * statistics.median(own[name] for own in parts), 2) for name in PARTS},
    }


def run(cells: tuple[Cell, ...], rounds: int, progress: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """Return the result as in the JSON file."""
    before = machine()
    with tempfile.TemporaryDirectory(prefix="tandem-tinker-") as directory:
        with ServiceProcess(Path(directory) / "home", {}) as service:
            key = service.create_key()
            progress("starting the service")
            service.start()
            results = [
                measure(service, key, cell, rounds, Path(directory) / f"direct-{index}", progress)
                for index, cell in enumerate(cells)
            ]
    return {"loss": LOSS, "rounds": rounds, "machine": before, "cells": results}


def table(result: dict[str, Any]) -> Table:
    drawn = Table("datums", "tokens", "SDK ms", "direct ms", "more ms", "ratio", *PARTS, "CPU ms")
    for cell in result["cells"]:
        parts = [f"{cell['parts_ms'][name]:.1f}" for name in PARTS]
        drawn.add_row(
            str(cell["datums"]), str(cell["tokens"]), f"{cell['sdk_ms']:.1f}", f"{cell['direct_ms']:.1f}",
            f"{cell['more_ms']:.1f}", f"{cell['ratio']:.3f}", *parts, str(cell["cpu_ms"]),
        )  # fmt: skip
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    console = Console(width=max(Console().width, 130))
    with console.status("") as status:
        result = run(CELLS, arguments.rounds, status.update)
    console.print(table(result))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
