"""Measure the CPU time of a service: of its start, and by process while it is idle.

    .venv/bin/python benchmarks/idle_cpu.py --output benchmarks/results/idle_cpu.json

Runs `tandem up` with a home of its own and a free port, waits until it is healthy, waits for `--settle` seconds more,
and measures all its processes, Ray's included, for `--seconds` from /proc/*/stat. `--tandem` names another checkout's
command, to compare two of them on one machine. The JSON has:

- `start`: seconds of wall time and of CPU time, of all processes, until the service answers (`ready`) and until
  `/health` reports `ok`, with the learners running (`healthy`);
- `idle_percent`: percent of one core by process, and their `total`.

`results/idle_cpu.json` was measured with nothing beside it on 2 cores; `idle_cpu_before.json` is of revision 1423567 on
the same machine, minutes before.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NotRequired, TypedDict

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from tandem.cluster.processes.held_ports import hold_port

PR_SET_CHILD_SUBREAPER = 36
READY = b"Tandem answers"
START_S = 900.0
POLL_S = 0.25
LEAST_PERCENT = 0.05  # processes below it are left out of the table


def cpu_seconds() -> dict[int, tuple[str, float]]:
    """The name and the CPU time of each process below this one, including the children that it has waited for."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
            used = times.user + times.system + times.children_user + times.children_system
            found[process.pid] = (label(process), used)
        except psutil.Error:
            continue
    return found


def label(process: psutil.Process) -> str:
    """The title that Ray and vLLM give a process, or its program or module."""
    try:
        command = process.cmdline() or [process.name()]
    except psutil.ZombieProcess:
        return "ended"
    if len(command) == 1 or "::" in command[0]:
        return command[0].split(" ")[0]
    if "-m" in command[:4]:
        return command[command.index("-m") + 1]
    program = next((word for word in command[1:] if word.endswith(".py") or word.endswith("tandem")), command[0])
    return Path(program).name


def total(times: dict[int, tuple[str, float]]) -> float:
    return sum(seconds for _, seconds in times.values())


def wait_until_healthy(service: subprocess.Popen[bytes], url: str, output: Path) -> dict[str, dict[str, float]]:
    start: dict[str, dict[str, float]] = {}
    began = time.monotonic()
    while "healthy" not in start:
        spent = time.monotonic() - began
        if service.poll() is not None or spent > START_S:
            raise SystemExit(f"The service didn't start:\n{output.read_text()}")
        figures = {"wall_s": round(spent, 1), "cpu_s": round(total(cpu_seconds()), 1)}
        if "ready" not in start and READY in output.read_bytes():
            start["ready"] = figures
        if "ready" in start and is_healthy(url):
            start["healthy"] = figures
        time.sleep(POLL_S)
    return start


def is_healthy(url: str) -> bool:
    try:
        return bool(httpx.get(f"{url}/health", timeout=60).json()["status"] == "ok")
    except httpx.HTTPError:
        return False


def idle_percent(seconds: float) -> dict[str, float]:
    before, began = cpu_seconds(), time.monotonic()
    time.sleep(seconds)
    after, elapsed = cpu_seconds(), time.monotonic() - began
    percent: dict[str, float] = defaultdict(float)
    for pid, (name, used) in after.items():
        percent[name] += 100 * (used - before.get(pid, (name, 0.0))[1]) / elapsed
    by_process = {name: round(value, 2) for name, value in sorted(percent.items(), key=lambda item: -item[1])}
    return {**by_process, "total": round(sum(percent.values()), 2)}


class Measured(TypedDict):
    """The JSON file."""

    start: dict[str, dict[str, float]]
    idle_percent: NotRequired[dict[str, float]]


def measure(tandem: Path, home: Path, settle_s: float, idle_s: float) -> Measured:
    output = home / "output"
    with hold_port("127.0.0.1") as held, output.open("wb") as written:
        port = held.getsockname()[1]
        environment = {**os.environ, "TANDEM_HOME": str(home), "TANDEM_HTTP__PORT": str(port)}
        service = subprocess.Popen([tandem, "up"], env=environment, stdout=written, stderr=written)
        try:
            start = wait_until_healthy(service, f"http://127.0.0.1:{port}", output)
            if not idle_s:
                return {"start": start}
            time.sleep(settle_s)
            return {"start": start, "idle_percent": idle_percent(idle_s)}
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tandem", type=Path, default=Path(sys.executable).with_name("tandem"))
    parser.add_argument("--settle", type=float, default=30.0, metavar="S")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="0 measures only the start")
    parser.add_argument("--output", type=Path, help="a JSON file")
    options = parser.parse_args()
    # Ray's processes leave their parents; without this they would become children of another process.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    with tempfile.TemporaryDirectory(prefix="tandem-idle-") as home:
        result = measure(options.tandem, Path(home), options.settle, options.seconds)
    table = Table("process", "percent of a core")
    for name, percent in result.get("idle_percent", {}).items():
        if percent >= LEAST_PERCENT:
            table.add_row(name, f"{percent:.2f}")
    Console().print(result["start"], table)
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
