"""Costs that can be measured on a busy machine: processor time, and elapsed time without the waits for a core."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Timing:
    """Of repeated work, in seconds. `free_s` is what it would take with a core to itself: elapsed time without the
    time in which its thread was ready to run and had no core. Waits for disks and other processes are part of it."""

    free_s: float
    low_s: float
    high_s: float
    wall_s: float
    repeats: int


def measure(work: Callable[[], object], repeats: int, warm_up: int = 1) -> Timing:
    """Medians, and the quartiles of the free time. `work` must do what it does in the calling thread."""
    for _ in range(warm_up):
        work()
    free, wall = [], []
    for _ in range(repeats):
        began, waited = time.perf_counter(), thread_waited_s()
        work()
        waited = thread_waited_s() - waited
        wall.append(time.perf_counter() - began)  # last, so that it has all the waits that are taken from it
        free.append(wall[-1] - waited)
    low, middle, high = statistics.quantiles(free, n=4, method="inclusive") if repeats > 1 else free * 3
    return Timing(middle, low, high, statistics.median(wall), repeats)


def thread_waited_s() -> float:
    """How long the calling thread has waited for a core since it began."""
    return _schedstat(Path(f"/proc/self/task/{threading.get_native_id()}/schedstat"))[1]


@dataclass(frozen=True)
class Usage:
    """What processes have used so far: seconds on a core, and seconds ready to run without one."""

    ran_s: float
    waited_s: float

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(self.ran_s - earlier.ran_s, self.waited_s - earlier.waited_s)


def usage(pids: Iterable[int]) -> Usage:
    """Of all threads that these processes have now; those of processes that have gone count nothing."""
    total = [0.0, 0.0]
    for pid in pids:
        for stat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                ran, waited = _schedstat(stat)
            except OSError:  # the thread has ended
                continue
            total[0] += ran
            total[1] += waited
    return Usage(*total)


def _schedstat(path: Path) -> tuple[float, float]:
    ran_ns, waited_ns, _ = path.read_text().split()
    return int(ran_ns) / 1e9, int(waited_ns) / 1e9


def machine() -> dict[str, object]:
    """What the numbers were measured on, and how busy it was."""
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ": unknown")
    return {
        "cpu": model.partition(":")[2].strip(),
        "cpus": os.cpu_count(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "date": time.strftime("%F"),
    }
