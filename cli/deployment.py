"""Deploy the service on Ray Serve, wait until it is healthy, and shut it down."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import ray
from ray import serve
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, LoggingConfig

from tandem.cli.startup import ServiceLostError, StartError
from tandem.cluster.config import TandemConfig
from tandem.cluster.processes.deadlines import within
from tandem.cluster.processes.local_ray import logs_of_start
from tandem.serve.app.graph import build_application
from tandem.serve.app.proxy_middleware import PROXY_ENVIRONMENT
from tandem.serve.app.serve_state import application_status

logger = logging.getLogger(__name__)
APPLICATION = "tandem"
START_DEADLINE_S = 900.0
END_DEADLINE_S = 30.0  # beyond the grace of running jobs


@contextmanager
def deployed(
    config: TandemConfig,
    verbose: bool = False,
    on_progress: Callable[[str], None] = lambda _: None,
    started_by: str | None = None,
    ends_serve: bool = False,
) -> Iterator[None]:
    """Run the service on the Ray that this process is connected to, while the block runs.

    Args:
        started_by: written on the application, so that a later command can tell whose it is.
        ends_serve: shut down Ray Serve too, for one that this process has started.
    """
    on_progress("starting Ray Serve")
    log_level = "INFO" if verbose else "WARNING"
    start_serve(config, log_level)
    try:
        _deploy(config, log_level, on_progress, started_by)
        yield
    except ServiceLostError:  # nothing is left to shut down
        raise
    except BaseException:
        end(config, ends_serve)
        raise
    end(config, ends_serve)


def start_serve(config: TandemConfig, log_level: str) -> None:
    logging.getLogger("ray.serve").setLevel(log_level)
    serve.start(
        http_options=HTTPOptions(host=config.http.host, port=config.http.port),
        logging_config=serves_logging(config, log_level),
        controller_options={"runtime_env": {"env_vars": PROXY_ENVIRONMENT}},  # the proxies inherit it
    )


def serves_logging(config: TandemConfig, log_level: str) -> LoggingConfig:
    """Return the settings of Ray Serve's own log files."""
    return LoggingConfig(log_level=log_level, encoding="JSON" if config.logging.format == "json" else "TEXT")


def end(config: TandemConfig, ends_serve: bool = False) -> None:
    """Shut down the application after the grace of running jobs. Past the deadline, leave the rest to Ray."""
    target = _shut_down_serve if ends_serve else _delete_application
    try:  # a Ray that has died may never answer
        within(config.coordinator.stop_grace_s + END_DEADLINE_S, target, "end-service")
    except Exception:
        logger.warning("Ray Serve didn't end the service", exc_info=True)


def ask_to_end(ends_serve: bool) -> None:
    """Ask Ray Serve to shut down the application, or itself too. It does so even if this process is killed afterwards.

    May raise RayError, or never return, if Ray has died."""
    if not ends_serve:
        serve.delete(APPLICATION, _blocking=False)
    elif client := _get_global_client(raise_if_no_controller_running=False):
        ray.get(client._controller.graceful_shutdown.remote(wait=False))


def _delete_application() -> None:
    try:
        ask_to_end(ends_serve=False)
        while application_status(APPLICATION) is not None:
            time.sleep(0.2)
    except ray.exceptions.RayError:
        logger.warning("Ray Serve has died before it could end the service", exc_info=True)


def _shut_down_serve() -> None:
    """Shut down Ray Serve like `serve.shutdown`, which would log the controller's expected end as an error."""
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return
    client.shutdown_cached_handles()
    with suppress(ray.exceptions.RayError, ValueError):  # the controller has ended
        ask_to_end(ends_serve=True)
        while ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE):
            time.sleep(0.2)


def _deploy(config: TandemConfig, log_level: str, on_progress: Callable[[str], None], started_by: str | None) -> None:
    try:
        application = build_application(config, started_by)
    except ValueError as error:  # of the configuration on this cluster
        raise StartError(str(error)) from error
    target = serve.RunTarget(
        target=application,
        name=APPLICATION,
        route_prefix="/",
        logging_config=serves_logging(config, log_level),
    )
    # Wait here rather than in Serve: with a deadline, with progress, and with a way to cancel.
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    deadline = time.monotonic() + START_DEADLINE_S
    while (state := application_status(APPLICATION)) is None or state.status != ApplicationStatus.RUNNING:
        deployments = state.deployments.items() if state else ()
        waiting = {name: d.message for name, d in deployments if d.status != "HEALTHY"}
        if refusal := refused(waiting.values()):
            raise StartError(refusal)  # Serve would try again for minutes
        on_progress("waiting for " + ", ".join(sorted(waiting)) if waiting else "deploying")
        failed = state is not None and state.status == ApplicationStatus.DEPLOY_FAILED
        if failed or time.monotonic() > deadline:
            faults = [f"{name}: {_cause(message)}" for name, message in waiting.items()]
            if state is not None and not faults:
                faults = [_cause(state.message)]
            logs = f"The full logs are in {logs_of_start()}."
            raise StartError("\n".join(["The service didn't start.", *faults, logs]))
        time.sleep(0.5)


def refused(messages: Iterable[str]) -> str | None:
    """Return why a base model was rejected, if one of Serve's messages about a replica says so."""
    found = [sentence for message in messages for sentence in _REFUSAL.findall(message)]
    return str(found[-1]).strip() if found else None


_REFUSAL = re.compile(r"PolicyError: (.+)")


def _cause(message: str) -> str:
    """Return the last line, where a traceback has its exception."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given."
