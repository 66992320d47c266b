"""Starts the service on a Ray cluster, or on a Ray of its own, and ends it again."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import ApplicationStatus, LoggingConfig

from tandem.cluster.config import TandemConfig
from tandem.rl.tiny_model import resolve_model

APPLICATION = "tandem"
OBJECT_STORE_BYTES = 512 << 20
START_DEADLINE_S = 900.0


class StartError(RuntimeError):
    """The service didn't come up. The message says which part, and where its log is."""


def num_cpus_needed(config: TandemConfig) -> int:
    """Ray CPUs that all actors of the configuration ask for, and one to spare."""
    asked = sum(
        base.learners.count * base.learners.num_cpus + base.engine.replicas * base.engine.num_cpus
        for base in config.base_models
    )
    return int(asked) + 1


@contextmanager
def running(
    config: TandemConfig, verbose: bool = False, on_progress: Callable[[str], None] = lambda _: None
) -> Iterator[None]:
    """The service, from ready to ended.

    Runs on the Ray this process is connected to, else on the cluster that RAY_ADDRESS names, else on a Ray of its own
    on this machine, which ends with the service. Raises StartError when a part doesn't become healthy.
    """
    for base in config.base_models:
        if base.path.startswith("builtin:"):
            on_progress(f"building {base.path}, once")
            resolve_model(base.path)
    connects = not ray.is_initialized()
    if connects:
        on_progress("starting Ray")
        _connect(config, verbose)
    try:
        _start_application(config, verbose, on_progress)
        yield
    finally:
        serve.delete(APPLICATION)
        if connects:
            ray.shutdown()


def _connect(config: TandemConfig, verbose: bool) -> None:
    options = {"namespace": APPLICATION, "log_to_driver": verbose, "logging_level": "INFO" if verbose else "ERROR"}
    if "RAY_ADDRESS" in os.environ:
        ray.init(**options)
        return
    # Without an explicit address Ray would join whatever cluster it finds on the machine.
    cpus = max(os.cpu_count() or 1, num_cpus_needed(config))
    ray.init(address="local", num_cpus=cpus, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False, **options)


def _start_application(config: TandemConfig, verbose: bool, on_progress: Callable[[str], None]) -> None:
    from tandem.serve.app import build_application

    log_level = "INFO" if verbose else "WARNING"
    logging.getLogger("ray.serve").setLevel(log_level)
    serve.start(
        http_options=HTTPOptions(host=config.http.host, port=config.http.port),
        logging_config=LoggingConfig(log_level=log_level),
    )
    failure: list[BaseException] = []

    def run() -> None:
        try:
            serve.run(
                build_application(config),
                name=APPLICATION,
                route_prefix="/",
                logging_config=LoggingConfig(log_level=log_level),
            )
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True, name="serve-run")
    thread.start()
    deadline = time.monotonic() + START_DEADLINE_S
    while thread.is_alive():
        thread.join(0.5)
        state = serve.status().applications.get(APPLICATION)
        if state is None:
            continue
        waiting = [name for name, d in state.deployments.items() if d.status != "HEALTHY"]
        if waiting:
            on_progress("waiting for " + ", ".join(sorted(waiting)))
        if state.status == ApplicationStatus.DEPLOY_FAILED or time.monotonic() > deadline:
            faults = [f"{name}: {_cause(d.message)}" for name, d in state.deployments.items() if d.status != "HEALTHY"]
            raise StartError(
                "\n".join(
                    ["The service didn't start.", *faults, "The full logs are under /tmp/ray/session_latest/logs."]
                )
            )
    if failure:
        raise StartError(f"The service didn't start: {failure[0]}") from failure[0]


def _cause(message: str) -> str:
    """The last line of a traceback, where the exception stands, or the whole of a shorter message."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given."
