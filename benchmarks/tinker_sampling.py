"""Samples through the Tinker API under load, beside vLLM's own server and SkyRL's server of the same API.

    .venv/bin/python benchmarks/tinker_sampling.py --output benchmarks/results/tinker_sampling.json

Starts `tandem up` and vLLM's server with the same engine arguments, and by turns puts the same load on each: 512
samples of 16 tokens asked for at once by one client, then 64 clients that ask for the next sample once they have one.
Clients of the Tinker API are the SDK (`tinker_load.py`, which says what the figures are); vLLM is asked for completions
over plain connections, so its figures have no client's work in them. `--skyrl` names a virtual environment with
`pip install "skyrl[tinker,jax]==0.4.0" aiohttp`; then SkyRL's server is measured too, with the SDK in that environment:
`skyrl_vllm` passes samples on to the same vLLM server; with `--jax`, `skyrl_jax` samples by itself. The JSON has for
each the round with the median samples per second of the burst; `of_vllm` is that rate over vLLM's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from idle_cpu import PR_SET_CHILD_SUBREAPER
from inference_overhead import end, machine, read_answer, tandem_service, vllm_server, wait_until
from rich.console import Console
from rich.table import Table

from tandem.cluster.processes.held_ports import hold_port
from tandem.rl.tiny.model import TINY_MODEL_DIR

BASE = "tandem/tiny"
LOAD = Path(__file__).with_name("tinker_load.py")
LOAD_S = 900.0
WARM_UP = {"at_once": 8, "clients": 2, "seconds": 1.0}
UV = """#!/bin/bash
# SkyRL starts its processes with `uv run ... -m MODULE ARGUMENTS`; all that they need is installed.
while [ "$1" != "-m" ]; do shift; done
shift
{python} -m "$@"
"""


@dataclass(frozen=True)
class Load:
    at_once: int = 512
    clients: int = 64
    seconds: float = 10.0
    """How long the clients ask for their next sample."""
    prompt_tokens: int = 32
    max_tokens: int = 16
    vocabulary: int = 500
    base_model: str = BASE


@dataclass(frozen=True)
class Server:
    """A server of the Tinker API, and the Python whose SDK asks it."""

    name: str
    url: str
    key: str
    python: Path

    def measure(self, load: Load, warm_up: bool = False) -> dict[str, Any]:
        options = json.dumps(asdict(load) | (WARM_UP if warm_up else {}))
        command = [str(self.python), str(LOAD), self.url, self.key, options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_S)
        if done.returncode:
            raise SystemExit(f"The load on {self.name} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
        measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return measured


@dataclass(frozen=True)
class Vllm:
    """vLLM's own server, asked over plain connections."""

    port: int
    name: str = "vllm"

    def measure(self, load: Load, warm_up: bool = False) -> dict[str, Any]:
        options = asdict(load) | (WARM_UP if warm_up else {})
        burst = asyncio.run(self._measured([1] * options["at_once"], load, 0.0))
        clients = asyncio.run(self._measured([sys.maxsize] * options["clients"], load, options["seconds"]))
        return {"burst": burst, "clients": clients}

    async def _measured(self, asks: list[int], load: Load, seconds: float) -> dict[str, Any]:
        """Ask over one connection for each of `asks`, that often or until the time is over."""
        cpu, began = time.process_time(), time.perf_counter()
        rng, until = random.Random(0), began + seconds
        found = await asyncio.gather(*(self._ask(most, rng, load, until) for most in asks))
        elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
        in_order = sorted(second for own in found for second in own)
        return {
            "samples": len(in_order),
            "failed": 0,  # an answer other than 200 ends the benchmark
            "p50_ms": round(1e3 * in_order[len(in_order) // 2], 1),
            "p99_ms": round(1e3 * in_order[int(0.99 * (len(in_order) - 1))], 1),
            "per_s": round(len(in_order) / elapsed, 2),
            "client_cpu_ms": round(1e3 * cpu / len(in_order), 2),
        }

    async def _ask(self, most: int, rng: random.Random, load: Load, until: float) -> list[float]:
        seconds: list[float] = []
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while not seconds or (len(seconds) < most and time.perf_counter() < until):
            began = time.perf_counter() if seconds else began
            prompt = [rng.randrange(3, load.vocabulary) for _ in range(load.prompt_tokens)]
            body = {
                "model": BASE, "prompt": prompt, "max_tokens": load.max_tokens, "temperature": 1.0,
                "logprobs": 0, "return_token_ids": True,
            }  # fmt: skip
            raw = json.dumps(body).encode()
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
            await read_answer(reader)
            seconds.append(time.perf_counter() - began)
        writer.close()
        return seconds


@contextlib.contextmanager
def skyrl_server(home: Path, environment: Path, vllm_port: int | None) -> Iterator[Server]:
    """Run SkyRL's server, with its JAX backend or, given a port, with vLLM's server for samples."""
    home.mkdir()
    python = environment / "bin" / "python"
    (home / "tandem").mkdir()
    (home / BASE).symlink_to(TINY_MODEL_DIR)  # a base model's name is a path there, and the name that vLLM is asked for
    shim = home / "uv"
    shim.write_text(UV.format(python=python))
    shim.chmod(0o755)
    output = home / "output"
    with hold_port("127.0.0.1") as held, output.open("wb") as written:
        port = held.getsockname()[1]
        held.close()
        command = [str(shim), "run", "-m", "skyrl.tinker.api", "--host=127.0.0.1", f"--port={port}"]
        command += [f"--base-model={BASE}", "--backend=jax", f"--checkpoints-base={home}/checkpoints"]
        command += ["--backend-config", '{"max_lora_adapters": 2, "max_lora_rank": 8, "sample_max_num_sequences": 64}']
        command += [f"--database-url=sqlite:///{home}/tinker.db"]
        if vllm_port is not None:
            command += [f"--external-inference-url=http://127.0.0.1:{vllm_port}"]
        variables = {"PATH": f"{home}:{os.environ['PATH']}", "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
        server = subprocess.Popen(command, cwd=home, env=os.environ | variables, stdout=written, stderr=written)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: b"Starting background engine" in output.read_bytes(), server, output)
            yield Server("skyrl_jax" if vllm_port is None else "skyrl_vllm", url, "tml-unused", python)
        finally:
            end_all(server)


def end_all(process: subprocess.Popen[bytes]) -> None:
    """End a server that runs below a shell."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.terminate()
    end(process)


def measure(
    contenders: list[Server | Vllm], load: Load, rounds: int, progress: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Put the load on each by turns, after a moment that isn't counted. Return the median round of each."""
    turns: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for contender in contenders:
        progress(f"warming up {contender.name}")
        contender.measure(load, warm_up=True)
    for number in range(1, rounds + 1):
        for contender in contenders:
            progress(f"{contender.name}, round {number} of {rounds}")
            turns[contender.name].append(contender.measure(load))
    return compared(turns)


def compared(turns: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return the median round of each contender, with all its failures and its ratio to vLLM."""
    found = {}
    for name, rounds in turns.items():
        median = sorted(rounds, key=lambda figures: figures["burst"]["per_s"])[len(rounds) // 2]
        failed = sum(figures[part]["failed"] for figures in rounds for part in ("burst", "clients"))
        found[name] = {**median, "failed_in_all_rounds": failed}
    for figures in found.values():
        figures["of_vllm"] = {
            part: round(figures[part]["per_s"] / found["vllm"][part]["per_s"], 3) for part in ("burst", "clients")
        }
    return found


def run(
    load: Load,
    rounds: int,
    command: Path,
    skyrl: Path | None,
    with_jax: bool,
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Return the result as in the JSON file."""
    before = machine()
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-tinker-")))
        progress("starting Tandem")
        tandem = stack.enter_context(tandem_service(home, command))
        progress("starting vLLM")
        [vllm, _] = stack.enter_context(vllm_server(home))
        url = f"http://127.0.0.1:{tandem.port}"
        contenders: list[Server | Vllm] = [
            Server("tandem", url, f"tml-{tandem.key}", Path(sys.executable)),
            Vllm(vllm.port),
        ]
        if skyrl is not None:
            progress("starting SkyRL")
            contenders.append(stack.enter_context(skyrl_server(home / "skyrl-vllm", skyrl, vllm.port)))
            if with_jax:
                contenders.append(stack.enter_context(skyrl_server(home / "skyrl-jax", skyrl, None)))
        results = measure(contenders, load, rounds, progress)
    return {"load": asdict(load), "rounds": rounds, "machine": before, "contenders": results}


def table(result: dict[str, Any]) -> Table:
    drawn = Table("server", "load", "samples", "failed", "p50 ms", "p99 ms", "per s", "of vLLM", "slowest heartbeat ms")
    for name, figures in result["contenders"].items():
        for part in ("burst", "clients"):
            own = figures[part]
            beats = own.get("heartbeats", {})
            drawn.add_row(
                name, part, str(own["samples"]), str(own["failed"]), f"{own['p50_ms']:.0f}", f"{own['p99_ms']:.0f}",
                f"{own['per_s']:.1f}", f"{figures['of_vllm'][part]:.2f}", str(beats.get("slowest_ms", "")),
            )  # fmt: skip
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the 64 clients in each round")
    parser.add_argument("--skyrl", type=Path, help="a virtual environment with SkyRL's server")
    parser.add_argument("--jax", action="store_true", help="measure SkyRL's own sampling, too")
    parser.add_argument("--tandem", type=Path, default=Path(sys.executable).with_name("tandem"), help="the command")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    # Ray's processes leave their parents; without this they would become children of another process.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    console = Console(width=max(Console().width, 110))
    with console.status("") as status:
        load = Load(seconds=arguments.seconds)
        result = run(load, arguments.rounds, arguments.tandem, arguments.skyrl, arguments.jax, status.update)
    console.print(table(result))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
