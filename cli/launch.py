"""Run the service on a Ray cluster, or on a Ray of its own."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ray

from tandem.cli.listening import hold
from tandem.cli.startup import StartError
from tandem.cluster.config import TandemConfig
from tandem.cluster.errors import RayStartError
from tandem.cluster.processes.deadlines import in_thread
from tandem.cluster.processes.heap import collection_paused
from tandem.cluster.processes.import_path import JobConfig
from tandem.cluster.processes.local_ray import local_ray

RAY_NAMESPACE = "tandem"
RAY_TOKEN_FILE = "ray_token"  # in the home directory
OBJECT_STORE_BYTES = 512 << 20
DEPLOYMENT = "tandem.cli.deployment"


@contextmanager
def running(
    config: TandemConfig, verbose: bool = False, on_progress: Callable[[str], None] = lambda _: None
) -> Iterator[None]:
    """Run the service while the block runs.

    It runs on the Ray that this process is connected to, else on the cluster of RAY_ADDRESS, else on a new Ray on this
    machine, which ends with the service. `on_progress` receives each step of the start, and may raise to cancel it.
    Raises StartError when a part doesn't become healthy, or when the port of a service on this machine is taken.
    """
    with hold(config.http) if starts_ray() else nullcontext(), connected(config, verbose, on_progress):
        from tandem.cli.deployment import deployed

        with deployed(config, verbose, on_progress):
            yield


def starts_ray() -> bool:
    """Return True if the service gets a Ray of its own, on this machine."""
    return not ray.is_initialized() and not os.environ.get("RAY_ADDRESS")


def num_cpus_needed(config: TandemConfig) -> int:
    """Return the Ray CPUs that all actors of the configuration ask for, plus one, or two where projects run code."""
    asked = sum(
        base.learners.count * base.learners.num_cpus + base.engine.replicas * base.engine.num_cpus
        for base in config.base_models
    )
    return int(asked) + (2 if config.runs_code else 1)


def import_deployment() -> None:
    with collection_paused():
        importlib.import_module(DEPLOYMENT)


@contextmanager
def connected(config: TandemConfig, verbose: bool, on_progress: Callable[[str], None]) -> Iterator[None]:
    """Connect to Ray: the one already connected, that of RAY_ADDRESS, or a new one. Raises StartError."""
    if ray.is_initialized():
        yield
        return
    on_progress("starting Ray")
    options: dict[str, Any] = {
        "namespace": RAY_NAMESPACE,
        "job_config": JobConfig(),
        "log_to_driver": verbose,
        "logging_level": "INFO" if verbose else "ERROR",
    }
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        cpus = max(os.cpu_count() or 1, num_cpus_needed(config))
        token_file = config.home / RAY_TOKEN_FILE
        # Ray's processes take seconds to start, and Ray Serve, which is needed next, takes seconds to import.
        in_thread(import_deployment, "import-serve")
        options |= {"num_cpus": cpus, "object_store_memory": OBJECT_STORE_BYTES}
        try:
            with local_ray(token_file, with_job_server=config.runs_code, **options):
                yield
        except RayStartError as error:
            raise StartError(str(error)) from error
        return
    try:
        ray.init(**options)
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        raise StartError(
            f"Can't connect to the Ray cluster at RAY_ADDRESS={address}: {error}\nIf it asks for a token, set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) as on its head node."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
