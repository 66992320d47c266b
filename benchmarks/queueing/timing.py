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
    """Seconds of repeated work. `free_s` is the time with a core to itself: elapsed time without the
    time in which its thread was ready to run and had no core. It includes waits for disks and other processes."""

    free_s: float
    low_s: float
    high_s: float
    wall_s: float
    repeats: int


def measure(work: Callable[[], object], repeats: int, warm_up: int = 1) -> Timing:
    """Return medians, and the quartiles of the free time. `work` must run in the calling thread."""
    for _ in range(warm_up):
        work()
    free, wall = [], []
    for _ in range(repeats):
        began, waited = time.perf_counter(), thread_waited_s()
        work()
        waited = thread_waited_s() - waited
        wall.append(time.perf_counter() - began)  # last, so that it includes all the waits that are subtracted
        free.append(wall[-1] - waited)
    low, middle, high = statistics.quantiles(free, n=4, method="inclusive") if repeats > 1 else free * 3
    return Timing(middle, low, high, statistics.median(wall), repeats)


def thread_waited_s() -> float:
    """Return how long the calling thread has waited for a core since it started."""
    return _schedstat(Path(f"/proc/self/task/{threading.get_native_id()}/schedstat"))[1]


@dataclass(frozen=True)
class Usage:
    """Time of processes so far: seconds on a core, and seconds ready to run without one."""

    ran_s: float
    waited_s: float

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(self.ran_s - earlier.ran_s, self.waited_s - earlier.waited_s)


def usage(pids: Iterable[int]) -> Usage:
    """Sum over all current threads of these processes; ended processes count nothing."""
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
    """Describe the machine and its load."""
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ": unknown")
    return {
        "cpu": model.partition(":")[2].strip(),
        "cpus": os.cpu_count(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "date": time.strftime("%F"),
    }
