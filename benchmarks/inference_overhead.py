"""Completions through Tandem against vLLM's own server, with the same engine arguments, adapter and load.

    .venv/bin/python benchmarks/inference_overhead.py --output benchmarks/results/inference_overhead.json

Starts `tandem up` and `python -m vllm.entrypoints.openai.api_server`, one beside the other, and measures each cell by
turns: completions of 16 tokens from a model of the built-in tiny base, at version 0. A cell is a number of clients,
each of which sends its next request once it has its answer, a number of choices, and whether they are streamed. `--all`
measures every cell, otherwise a subset that takes at most 4 minutes. vLLM is asked twice: `vllm` for a plain
completion, `vllm_full` for one with the logprobs and token ids that Tandem returns by default. The JSON has, by cell
and contender:

- `per_s`: completed requests per second; `p50_ms`, `p95_ms`: their latency;
- `cpu_ms`: CPU time of a request by process, also of this client, which shares the cores;
- `of_vllm`, `of_vllm_full`: Tandem's requests per second over vLLM's. `more_ms`: its p50 minus vLLM's full p50.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from idle_cpu import PR_SET_CHILD_SUBREAPER, READY, label
from rich.console import Console
from rich.table import Table

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import TandemConfig
from tandem.cluster.engine.setup.settings import engine_arguments, engine_environment
from tandem.cluster.processes.held_ports import hold_port
from tandem.serve.keys import generate_key

TOKENS = 16
START_S = 900.0
PATH = "/v1/chat/completions"
MODEL = "default/bench/agent"
FULL = {"logprobs": True, "top_logprobs": 0, "return_token_ids": True}
PEERS: list[psutil.Process] = []  # vLLM's; all others below this process are Tandem's
LEAST_MS = 0.2  # processes below it are left out of the JSON


@dataclass(frozen=True)
class Cell:
    clients: int
    n: int = 1
    streams: bool = False

    def __str__(self) -> str:
        return f"{self.clients} clients, n={self.n}" + (", streamed" if self.streams else "")


ALL = [Cell(clients, n, streams) for streams in (False, True) for n in (1, 8) for clients in (1, 8, 32, 128)]
SUBSET = [Cell(1), Cell(8), Cell(32), Cell(128), Cell(8, 8), Cell(1, 1, True), Cell(32, 1, True)]


@dataclass
class Contender:
    """A server, and how it is asked."""

    name: str
    port: int
    model: str
    processes: Callable[[], list[psutil.Process]]
    key: str = "none"
    options: dict[str, Any] | None = None

    def request(self, cell: Cell, number: int) -> bytes:
        content = f"Which of these numbers is the largest: {number % 89}, {number % 97} or {number % 101}?"
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": TOKENS,
            "n": cell.n,
            "stream": cell.streams,
            "ignore_eos": True,
            **(self.options or {}),
        }
        raw = json.dumps(body).encode()
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        )
        return head.encode() + raw

    def cpu_seconds(self) -> dict[int, tuple[str, float]]:
        """The name and the CPU time of each of this server's processes. Ray changes names."""
        found = {}
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                found[process.pid] = label(process), times.user + times.system
        return found


async def client(contender: Contender, cell: Cell, numbers: Iterator[int], until: float) -> list[float]:
    """Send one request after the other until the time is over. Return the seconds of each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", contender.port)
    seconds: list[float] = []
    while not seconds or time.perf_counter() < until:
        began = time.perf_counter()
        writer.write(contender.request(cell, next(numbers)))
        await read_answer(reader)
        seconds.append(time.perf_counter() - began)
    writer.close()
    return seconds


async def read_answer(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise SystemExit(f"The server answers {head.decode()}")
    if b"content-length: " in head:
        await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
    else:
        end = b""
        while not end.endswith(b"\r\n0\r\n\r\n"):
            end = end[-7:] + await reader.read(1 << 16)


async def load(contender: Contender, cell: Cell, seconds: float, first: int) -> dict[str, Any]:
    """Run a cell on one server, and return its figures."""
    numbers = iter(range(first, sys.maxsize))
    before, own, began = contender.cpu_seconds(), time.process_time(), time.perf_counter()
    answers = await asyncio.gather(*(client(contender, cell, numbers, began + seconds) for _ in range(cell.clients)))
    elapsed, own = time.perf_counter() - began, time.process_time() - own
    after = contender.cpu_seconds()
    latencies = sorted(1e3 * second for of_client in answers for second in of_client)
    cpu: dict[str, float] = defaultdict(float)
    for pid, (name, used) in after.items():
        cpu[name] += 1e3 * (used - before.get(pid, (name, 0.0))[1]) / len(latencies)
    kept = {name: round(ms, 2) for name, ms in cpu.items() if ms >= LEAST_MS}
    return {
        "per_s": len(latencies) / elapsed,
        "p50_ms": statistics.median(latencies),
        "p95_ms": latencies[int(0.95 * (len(latencies) - 1))],
        "cpu_ms": {"all": round(sum(cpu.values()), 2), **kept, "client": round(1e3 * own / len(latencies), 2)},
    }


def measure(
    contenders: list[Contender], cells: list[Cell], seconds: float, rounds: int, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure each cell by turns, after a moment that isn't counted."""
    results = []
    for cell in cells:
        turns: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for turn in range(rounds + 1):
            for contender in contenders:
                progress(f"{cell}: {contender.name}, round {turn} of {rounds}")
                figures = asyncio.run(load(contender, cell, seconds if turn else min(seconds, 1.0), turn * 1000))
                if turn:
                    turns[contender.name].append(figures)
        results.append(compared(cell, turns))
    return results


def compared(cell: Cell, turns: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the median round of each contender, and their ratios."""
    medians = {
        name: sorted(rounds, key=lambda figures: figures["per_s"])[len(rounds) // 2] for name, rounds in turns.items()
    }
    result = {"clients": cell.clients, "n": cell.n, "streams": cell.streams, **medians}
    if "tandem" in medians:
        tandem = medians["tandem"]
        for peer in medians.keys() - {"tandem"}:
            result[f"of_{peer}"] = round(tandem["per_s"] / medians[peer]["per_s"], 3)
        if "vllm_full" in medians:
            result["more_ms"] = round(tandem["p50_ms"] - medians["vllm_full"]["p50_ms"], 2)
    return result


@contextlib.contextmanager
def tandem_service(home: Path, command: Path) -> Iterator[Contender]:
    """Run `tandem up` with a model, and its coordinator's learners idle."""
    output, (key, sha256) = home / "output", generate_key()
    with hold_port("127.0.0.1") as held, output.open("wb") as written:
        port = held.getsockname()[1]
        environment = os.environ | {
            "TANDEM_HOME": str(home),
            "TANDEM_HTTP__PORT": str(port),
            "TANDEM_ADMIN_KEY_SHA256": sha256,
        }
        service = subprocess.Popen([command, "up"], env=environment, stdout=written, stderr=written)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: READY in output.read_bytes() and health(url) == "ok", service, output)
            project, name = MODEL.split("/")[1:]
            model = {"entity": None, "project": project, "name": name, "base_model": "tandem/tiny"}
            headers = {"Authorization": f"Bearer {key}"}
            httpx.post(f"{url}/v1/preview/models", json=model, headers=headers).raise_for_status()
            yield Contender("tandem", port, MODEL, lambda: [p for p in children() if p not in PEERS], key)
        finally:
            end(service)


@contextlib.contextmanager
def vllm_server(home: Path) -> Iterator[list[Contender]]:
    """Run vLLM's server with the engine arguments of the service in `home`, and its version 0 as an adapter."""
    config = TandemConfig(home=home)
    base = ResolvedBaseModel(config.base_models[0])
    adapters = list(Artifacts(config.artifacts_root).checkpoints_dir.iterdir())
    arguments = engine_arguments(base.config.engine, base.path, base.name, base.max_model_len, base.config.lora, "cpu")
    environment = os.environ | engine_environment("cpu", base.path)
    output = home / "vllm-output"
    with hold_port("127.0.0.1") as held, output.open("wb") as written:
        port = held.getsockname()[1]
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host=127.0.0.1", f"--port={port}"]
        command += ["--disable-uvicorn-access-log", *arguments, "--lora-modules", f"adapter={adapters[0]}"]
        held.close()
        server = subprocess.Popen(command, env=environment, stdout=written, stderr=written)
        try:
            wait_until(lambda: health(f"http://127.0.0.1:{port}") is not None, server, output)
            process = psutil.Process(server.pid)
            PEERS.extend([process, *process.children(recursive=True)])
            yield [
                Contender("vllm", port, "adapter", lambda: PEERS),
                Contender("vllm_full", port, "adapter", lambda: PEERS, options=FULL),
            ]
        finally:
            end(server)


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def health(url: str) -> str | None:
    """Return the status of a server, "" if it answers without one, None if it doesn't answer."""
    try:
        response = httpx.get(f"{url}/health", timeout=60)
        return str(response.json()["status"]) if response.content else ""
    except (httpx.HTTPError, ValueError, LookupError):
        return None


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + START_S
    while not holds():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"The server didn't start:\n{output.read_text()[-5000:]}")
        time.sleep(0.25)


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait()


def machine() -> dict[str, Any]:
    names = [line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "busy_percent_before": psutil.cpu_percent(interval=1.0),
    }


def run(
    cells: list[Cell],
    seconds: float,
    rounds: int,
    command: Path,
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Return the result as in the JSON file."""
    before = machine()
    with tempfile.TemporaryDirectory(prefix="tandem-overhead-") as directory:
        progress("starting Tandem")
        with tandem_service(Path(directory), command) as tandem:
            progress("starting vLLM")
            with vllm_server(Path(directory)) as peers:
                results = measure([tandem, *peers], cells, seconds, rounds, progress)
    return {"tokens": TOKENS, "seconds": seconds, "rounds": rounds, "machine": before, "cells": results}


def table(result: dict[str, Any]) -> Table:
    titles = "clients,n,streams,per s,vLLM,vLLM full,of vLLM,of full,p50 ms,more ms,CPU ms"
    drawn = Table(*titles.split(","))
    for cell in result["cells"]:
        tandem = cell["tandem"]
        rates = [f"{cell[name]['per_s']:.1f}" for name in ("tandem", "vllm", "vllm_full")]
        drawn.add_row(
            str(cell["clients"]),
            str(cell["n"]),
            "yes" if cell["streams"] else "",
            *rates,
            f"{cell['of_vllm']:.2f}",
            f"{cell['of_vllm_full']:.2f}",
            f"{tandem['p50_ms']:.1f}",
            f"{cell['more_ms']:.1f}",
            f"{tandem['cpu_ms']['all']:.1f} / {cell['vllm_full']['cpu_ms']['all']:.1f}",
        )
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="every cell")
    parser.add_argument("--seconds", type=float, default=2.5, help="of each cell, contender and round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tandem", type=Path, default=Path(sys.executable).with_name("tandem"), help="the command")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    # Ray's processes leave their parents; without this they would become children of another process.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    console = Console(width=max(Console().width, 110))
    with console.status("") as status:
        cells = ALL if arguments.all else SUBSET
        result = run(cells, arguments.seconds, arguments.rounds, arguments.tandem, status.update)
    console.print(table(result))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
