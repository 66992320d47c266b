"""Run a user's program on several workers: `python -m THIS_MODULE N CPUS GPUS python boot.py ...`.

This is the entrypoint of a Ray job. Each worker has its own resources, on its own node if there are enough nodes, and
runs the command with `--init_method=tcp://HOST:PORT --rank=I --world_size=N` added. The output of all workers is
printed line by line, each line marked with the worker's rank (`demultiplex` removes the marks). If a worker fails, the
others are stopped.
"""

from __future__ import annotations

import ctypes
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import IO, Any

from tandem.cluster.learners.rendezvous import hold_meeting_place, init_method
from tandem.cluster.processes.granted_gpus import hide_other_gpus

MARK = "\x1e"  # "record separator", which no program prints at the start of a line
READ_S = 0.5
PLACEMENT_HINT_S = 30.0
START_S = 300.0  # for a process on a busy node, after its resources are reserved


class UserWorker:
    """A Ray actor that runs the program as a child process, which dies with the actor, and reads its output."""

    def __init__(self) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._process: subprocess.Popen[str] | None = None
        self._meeting: socket.socket | None = None  # holds the port for the program of worker 0

    def rendezvous(self) -> str:
        """Return the address at which all workers meet, on this worker's node."""
        self._meeting = hold_meeting_place()
        return init_method(self._meeting)

    def start(self, command: Sequence[str]) -> None:
        """Start the program, which sees the GPUs of this worker only."""
        hide_other_gpus()
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=_die_with_parent,
        )
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    def read(self) -> tuple[list[str], int | None]:
        """Return the lines since the last call, after a short wait for the first, and at the end the exit status."""
        lines: list[str] = []
        try:
            line = self._lines.get(timeout=READ_S)
            while line is not None:
                lines.append(line)
                line = self._lines.get_nowait()
        except queue.Empty:
            return lines, None
        assert self._process is not None, "read() comes after start()"
        return lines, self._process.wait()

    def _read(self, output: IO[str]) -> None:
        for line in output:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def demultiplex(lines: Iterable[str], num_workers: int) -> dict[int, list[str]]:
    """Sort lines of a job's output by worker, without marks. Unmarked lines (from Ray) go to worker 0."""
    by_worker: dict[int, list[str]] = {}
    for line in lines:
        rank, text = 0, line
        if line.startswith(MARK):
            marked, _, rest = line[1:].partition(MARK)
            if marked.isdigit() and int(marked) < num_workers:
                rank, text = int(marked), rest
        by_worker.setdefault(rank, []).append(text)
    return by_worker


def lead(num_workers: int, num_cpus: float, num_gpus: float, command: Sequence[str]) -> int:
    """Run the command on all workers. Returns 0, or the exit status of the first worker that fails."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ray.init(log_to_driver=False)
    bundle = {kind: amount for kind, amount in (("CPU", num_cpus), ("GPU", num_gpus)) if amount}
    group = placement_group([bundle] * num_workers, strategy="SPREAD")
    while not group.wait(PLACEMENT_HINT_S):
        _print(0, f"tandem: waiting for free resources for {num_workers} workers with {bundle} each")
    workers = [
        ray.remote(UserWorker)
        .options(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        )
        .remote()
        for rank in range(num_workers)
    ]
    try:
        _start(workers, command)
    except _StartError as error:
        _print(error.rank, f"tandem: {error}")
        return 1
    return _follow(workers)


class _StartError(Exception):
    def __init__(self, rank: int, cause: str):
        super().__init__(f"worker {rank} {cause}")
        self.rank = rank


def _start(workers: Sequence[Any], command: Sequence[str]) -> None:
    """Start the command on each worker. Raises _StartError, which names the worker and the cause."""
    [meeting] = _wait_for_all([workers[0].rendezvous.remote()])
    starts = []
    for rank, worker in enumerate(workers):
        arguments = [f"--init_method={meeting}", f"--rank={rank}", f"--world_size={len(workers)}"]
        starts.append(worker.start.remote([*command, *arguments]))
    _wait_for_all(starts)


def _wait_for_all(refs: Sequence[Any]) -> list[Any]:
    """Return the results of workers 0, 1, ... Raises _StartError."""
    import ray

    deadline, answers = time.monotonic() + START_S, []
    for rank, ref in enumerate(refs):
        try:
            answers.append(ray.get(ref, timeout=max(0.0, deadline - time.monotonic())))
        except ray.exceptions.GetTimeoutError:
            cause = (
                f"hasn't started within {START_S:g} s although its resources are reserved: its node hangs or is "
                "overloaded. Check the load and the memory of the cluster's nodes, then start the job again."
            )
            raise _StartError(rank, cause) from None
        except ray.exceptions.RayActorError as error:
            raise _StartError(rank, f"died before its program ran: {' '.join(str(error).split())}") from error
        except ray.exceptions.RayTaskError as error:
            raise _StartError(rank, f"can't run its program: {error.cause}") from error
    return answers


def _follow(workers: Sequence[Any]) -> int:
    """Print the output of the workers until all have ended, or one has failed. Returns the exit status."""
    import ray

    reading = {worker.read.remote(): rank for rank, worker in enumerate(workers)}
    while reading:
        [ready], _ = ray.wait(list(reading), num_returns=1)
        rank = reading.pop(ready)
        try:
            lines, status = ray.get(ready)
        except ray.exceptions.RayActorError as error:
            _print(rank, f"tandem: worker {rank} died: {' '.join(str(error).split())}")
            return 1
        for line in lines:
            _print(rank, line)
        if status is None:
            reading[workers[rank].read.remote()] = rank
        elif status:
            how = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
            _print(rank, f"tandem: worker {rank} {how}; stopping the other workers")
            return status if 0 < status < 256 else 1
    return 0


def _print(rank: int, line: str) -> None:
    print(f"{MARK}{rank}{MARK}{line}", flush=True)


if __name__ == "__main__":
    num_workers, num_cpus, num_gpus, *command = sys.argv[1:]
    sys.exit(lead(int(num_workers), float(num_cpus), float(num_gpus), command))
