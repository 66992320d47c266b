"""The service for a run: one that is named, the one of its Ray cluster, or a new one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from tandem.cli.listening import hold_any
from tandem.cli.startup import Startup
from tandem.cli.surroundings import check_surroundings
from tandem.client.connection import Connection
from tandem.cluster.config import TandemConfig
from tandem.cluster.processes.deadlines import in_thread
from tandem.runs.directory import RunDirectory

ASK_S = 5.0
WITH_SERVE = "+serve"  # suffix of the id of a run that has started Ray Serve too


@dataclass(frozen=True)
class RunService:
    """URL and key of the service, and its lifecycle for the run."""

    url: str
    key: str = field(repr=False)
    check: Callable[[], None]
    """Call this every few seconds. Raises ServiceLostError if a service that the run has started has ended."""
    ask_to_end: Callable[[], None]
    """Start to revoke the key and to shut down the service, and return at once. The end of the block waits for both,
    but the process may be killed before that."""


@contextmanager
def run_service(
    named_url: str | None,
    config: TandemConfig,
    entity: str | None,
    directory: RunDirectory,
    start: Startup,
    verbose: bool,
) -> Iterator[RunService]:
    """Yield a service, ready, for the run in `directory`:

    1. the one at `named_url`, with TANDEM_API_KEY;
    2. in a Ray cluster (RAY_ADDRESS), its application "tandem";
    3. a new one, on that cluster or on a Ray of its own, which ends with the block.

    A service that a killed process of the same run left behind is used, and shut down at the end.
    Raises SettingsError for a wrong URL or key, UnusableError, StartError, and KeyboardInterrupt when the start is
    cancelled.
    """
    if named_url:
        service = Connection(named_url, None, timeout_s=0, retries=0)  # checks them
        start.ready()
        yield RunService(service.url, service.key, check=lambda: None, ask_to_end=lambda: None)
        return
    from tandem.cli.launch import connected

    if not os.environ.get("RAY_ADDRESS"):
        check_surroundings(config)
    with ExitStack() as exits:
        exits.enter_context(connected(config, verbose, start.progress))
        check, ask_to_end = exits.enter_context(_on_this_ray(config, directory, start, verbose))
        yield exits.enter_context(_with_key(entity, directory, start, check, ask_to_end))


@contextmanager
def _on_this_ray(
    config: TandemConfig, directory: RunDirectory, start: Startup, verbose: bool
) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """Find or start the service, and shut it down if this run started it. Yields `check` and `ask_to_end`."""
    from tandem.cli import deployment, on_cluster
    from tandem.cli.startup import ServiceLostError
    from tandem.cli.watching import ServiceWatch

    own = directory.state.run_id
    found = on_cluster.settled_service(start.progress, lambda by: by.startswith(own))
    if found is None:
        has_serve = on_cluster.serve_is_running()
        ends_serve = not has_serve and bool(os.environ.get("RAY_ADDRESS"))  # its own Ray ends together with Serve
        started_by = own + WITH_SERVE if ends_serve else own
        with ExitStack() as exits:
            config = config if has_serve else exits.enter_context(_on_free_port(config))
            exits.enter_context(deployment.deployed(config, verbose, start.progress, started_by, ends_serve))
            start.warn_of_open_ray()
            yield ServiceWatch().check, partial(deployment.ask_to_end, ends_serve)
    elif found.started_by is not None and found.started_by.startswith(own):
        start.progress("using the service that this run started earlier")
        ends_serve = found.started_by.endswith(WITH_SERVE)
        try:
            yield ServiceWatch().check, partial(deployment.ask_to_end, ends_serve)
        finally:
            with suppress(ServiceLostError):
                deployment.end(config, ends_serve)
    else:
        start.progress("using the service of this cluster")
        yield lambda: None, lambda: None


@contextmanager
def _with_key(
    entity: str | None,
    directory: RunDirectory,
    start: Startup,
    check: Callable[[], None],
    ask_service_to_end: Callable[[], None],
) -> Iterator[RunService]:
    from tandem.cli.on_cluster import key_for, revoke_key, service_url

    def remember(key_id: str | None) -> None:
        directory.update(key_id=key_id)

    if directory.state.key_id:
        with suppress(Exception):  # the key may be of another service that has ended
            revoke_key(directory.state.key_id)
    name = f"tandem train {directory.path.name}"[:128]
    with key_for(name, entity or "default", remember) as key:

        def ask_to_end() -> None:
            for ask in (key.revoke, ask_service_to_end):
                with suppress(Exception):  # the end of the block tries again
                    ask()

        asked: list[Future[None]] = []
        start.ready()
        try:
            # In a thread: a dead Ray may never answer.
            yield RunService(service_url(), key.key, check, lambda: asked.append(in_thread(ask_to_end, "ask-to-end")))
        finally:
            wait(asked, ASK_S)


@contextmanager
def _on_free_port(config: TandemConfig) -> Iterator[TandemConfig]:
    """Yield the configuration with a free port, the configured one if possible: only the run itself needs to know it.

    The port is held until the block ends, so that nothing else gets it before Serve listens on it.
    """
    with hold_any(config.http) as held:
        yield config.model_copy(update={"http": config.http.model_copy(update={"port": held.port})})
