"""Execution of the missing runs: one after the other in this process, or as tasks of a Ray cluster.

Only this process writes results, each as soon as it has it. So a cluster needs no shared disk, and runs that finished
before a kill are kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from loss_comparison.replay import StoredBatches
from loss_comparison.results import Results
from loss_comparison.settings import RunRequest

WAIT_S = 5.0
Stored = Mapping[str, StoredBatches]
"""Stored batches by their digest."""


def execute(request: RunRequest, stored: StoredBatches | None, progress: Callable[[str], None]) -> dict[str, Any]:
    """Execute one run in this process."""
    from loss_comparison import replay, training_run, trl_peer

    if request.kind == "replay":
        if stored is None:
            raise ValueError(f"{request.label} is a replay and needs the stored batches {request.replay_digest}.")
        return replay.replay(request, stored, progress)
    if request.kind == "trl":
        return trl_peer.train(request, progress)
    return training_run.train(request, progress)


class Failures(list[tuple[RunRequest, BaseException]]):
    """Runs that raised an error. The others continue."""

    def __str__(self) -> str:
        return "\n".join(f"{request.label}: {type(error).__name__}: {error}" for request, error in self)


def run_here(requests: Sequence[RunRequest], stored: Stored, results: Results, console: Console) -> Failures:
    failures = Failures()
    with _bar(console, len(requests)) as (advance, describe):
        for request in requests:
            if results.get(request) is not None:
                advance(f"{request.label}: made by another process in the meantime")
                continue
            began = time.monotonic()

            def show(what: str, label: str = request.label) -> None:
                describe(f"{label}: {what}")

            try:
                done = execute(request, _batches(request, stored), show)
            except Exception as error:
                failures.append((request, error))
                advance(f"[red]{request.label} failed[/]: {error}")
                continue
            results.put(request, done)
            advance(_line(request, done, time.monotonic() - began))
    return failures


def run_on_ray(
    requests: Sequence[RunRequest], stored: Stored, results: Results, console: Console, cpus: float, gpus: float,
    idle_timeout_s: float,
) -> Failures:  # fmt: skip
    """Execute the runs as Ray tasks of `cpus` and `gpus` each, on the cluster that this process has joined.

    Raise TimeoutError if no run ends within `idle_timeout_s`.
    """
    import ray

    @ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=3)
    def task(request: RunRequest, batches: StoredBatches | None) -> dict[str, Any]:
        return execute(request, batches, lambda what: None)

    references = {digest: ray.put(batches) for digest, batches in stored.items()}

    def batches_of(request: RunRequest) -> Any:
        """Return a reference, in place of which the task gets the batches."""
        return None if request.replay_digest is None else references[request.replay_digest]

    running = {task.remote(request, batches_of(request)): request for request in requests}
    failures, last = Failures(), time.monotonic()
    with _bar(console, len(requests)) as (advance, describe):
        while running:
            done, _ = ray.wait(list(running), timeout=WAIT_S)
            for reference in done:
                request, last = running.pop(reference), time.monotonic()
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayError as error:
                    failures.append((request, error))
                    advance(f"[red]{request.label} failed[/]: {error}")
                    continue
                results.put(request, result)
                advance(_line(request, result, result["wall_seconds"]))
            describe(f"{len(running)} runs on {ray.cluster_resources().get('CPU', 0):g} CPUs")
            if running and time.monotonic() - last > idle_timeout_s:
                raise TimeoutError(
                    f"No run has ended for {idle_timeout_s:g} s. Each needs {cpus:g} CPUs and {gpus:g} GPUs on a node; "
                    f"{ray.available_resources()} is free. Request less (--cpus, --gpus) or wait longer "
                    "(--idle-timeout)."
                )
    return failures


@contextmanager
def ray_connection(package: Path, token_file: Path) -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS (as in a submitted job), else to a new Ray on this machine.

    Its workers get this package and one torch thread each.
    """
    import ray

    runtime_env = {
        "py_modules": [str(package)],
        "env_vars": {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    }
    options: dict[str, Any] = {"runtime_env": runtime_env, "logging_level": "ERROR", "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**options)
        try:
            yield
        finally:
            ray.shutdown()
        return
    from tandem.cluster.processes.local_ray import local_ray

    with local_ray(token_file, num_cpus=os.cpu_count(), object_store_memory=200 << 20, **options):
        yield


def _batches(request: RunRequest, stored: Stored) -> StoredBatches | None:
    return None if request.replay_digest is None else stored[request.replay_digest]


def _line(request: RunRequest, result: Mapping[str, Any], wall_s: float) -> str:
    last = next(record["eval"] for record in reversed(result["curve"]) if "eval" in record)
    return f"{request.label}: reward {last['reward']:.3f}, KL {last['kl_base']:.3f}, {wall_s:.0f} s"


@contextmanager
def _bar(console: Console, total: int) -> Iterator[tuple[Callable[[str], None], Callable[[str], None]]]:
    """`advance` counts a run and prints its line, also without a terminal."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total)

        def advance(line: str) -> None:
            progress.advance(task)
            console.print(line)

        yield advance, lambda what: progress.update(task, description=what)
