"""A Ray cluster on this machine alone: it listens on the loopback interface and requires a token.

Any client of a Ray cluster can run code as the user who started it. By default, Ray listens on all interfaces and keeps
its token in a file that every user of the machine can read.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private import ray_constants
from ray._private.parameter import RayParams
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # in C, without stubs

from tandem.cluster.errors import RayStartError
from tandem.cluster.processes.import_path import children_import_safely
from tandem.cluster.processes.process_log import logs_directory

AUTH_MODE = "RAY_AUTH_MODE"
TOKEN = "RAY_AUTH_TOKEN"
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Ray's background work. By default it takes most of an idle service's CPU time.
QUIET = {
    "RAY_prestart_worker_first_driver": "0",  # processes ahead of time, which no actor with variables of its own uses
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # default 0.1; health checks have periods of 5 s and more
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",  # default 100; Ray itself reports metrics every 10 s
}


@contextmanager
def local_ray(token_file: Path, with_job_server: bool = False, **options: Any) -> Iterator[None]:
    """Start a Ray cluster that ends with the block. `options` are those of `ray.init`.

    `with_job_server` accepts programs as Ray jobs, which needs Ray's dashboard, one more process. The token is in
    `token_file`, which is created if missing, unless Ray's environment variables name another. Processes started
    within the block inherit these variables and can connect. Raises RayStartError.
    """
    if TOKEN not in os.environ:
        os.environ.setdefault(TOKEN_PATH, str(ensure_token(token_file)))
    # By default torch.distributed, in vLLM and in learners, listens on the interface of the machine's host name.
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    # Kill a replica that fails its health checks at once: if it hangs, it can't use a grace period.
    os.environ.setdefault("RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS", "1")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # Ray reads these once per process, at import or first use. A cluster that other nodes may join, the default on
    # Linux, listens on all interfaces; others listen on the loopback interface.
    AuthenticationTokenLoader.instance().reset_cache()
    others_may_join = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    # For processes that connect on their own: the job server and users' programs.
    for_children = os.environ.get(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR)
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    try:
        # Without an address, Ray would join any cluster on this machine. RAY_AUTH_MODE stays unset: Ray then enables
        # token authentication by itself, also in this process, which has loaded Ray already.
        # Jobs publish their logs through the log monitor, and so does a driver that shows those of its workers.
        has_log_monitor = with_job_server or options.get("log_to_driver", True)
        with _ray_parameters(dashboard_agent_listen_port=0, include_log_monitor=has_log_monitor, no_monitor=True):
            try:
                with children_import_safely(), children_reach_loopback_directly():
                    ray.init(address="local", include_dashboard=with_job_server, **options)
            except Exception as error:  # Ray has no class for it
                raise RayStartError(
                    f"Ray didn't start on this machine: {error}\nIf the machine is busy, try again later. "
                    f"Its logs are in {logs_of_start()}."
                ) from error
        yield
    finally:
        ray.shutdown()
        ray_constants.ENABLE_RAY_CLUSTER = others_may_join
        if for_children is None:
            del os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR]
        else:
            os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = for_children


def dead_processes() -> list[str]:
    """Return the essential processes of this process's own Ray that have ended."""
    own = ray._private.worker._global_node  # None, or without processes, in a process that joined a cluster
    ended: set[str] = {kind for kind, _ in own.dead_processes()} if own else set()
    return sorted(ended & {ray_constants.PROCESS_TYPE_GCS_SERVER, ray_constants.PROCESS_TYPE_RAYLET})


@contextmanager
def _ray_parameters(**parameters: Any) -> Iterator[None]:
    """Set parameters for which `ray.init` has no option.

    `dashboard_agent_listen_port=0`: with the fixed port, a second Ray on a machine would accept no jobs.
    `no_monitor` omits the process of the autoscaler, which one machine doesn't need. `include_log_monitor=False` omits
    the process that publishes logs, if nothing reads them.
    """
    init = RayParams.__init__
    setattr(RayParams, "__init__", partialmethod(init, **parameters))  # noqa: B010
    try:
        yield
    finally:
        setattr(RayParams, "__init__", init)  # noqa: B010


@contextmanager
def children_reach_loopback_directly() -> Iterator[None]:
    """Processes that are started in the block use no proxy for this machine, as for Ray's job server."""
    names = ("no_proxy", "NO_PROXY")
    before = {name: os.environ.get(name) for name in names}
    listed = [value for value in before.values() if value]
    for name in names:
        os.environ[name] = ",".join([*listed[:1], *LOOPBACK])
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def logs_of_start() -> Path | None:
    """Return the directory with the logs of the Ray that this process is connected to, or has tried to start."""
    tried = Path(get_default_ray_temp_dir()).glob(f"session_*_{os.getpid()}")  # Ray adds the process that starts it
    return logs_directory() or max((session / "logs" for session in tried), default=None)


def token_authentication_is_on() -> bool:
    """Return True if this process uses tokens with Ray. Valid once Ray is connected."""
    return os.environ.get(AUTH_MODE, "").lower() == "token"


def ensure_token(file: Path) -> Path:
    """Write a random token to `file`, readable by this user alone, unless there is one. Return the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}-{secrets.token_hex(8)}")
    try:
        with open(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as opened:
            opened.write(secrets.token_hex(32))
        os.link(aside, file)  # fails if another process wrote one meanwhile
    except FileExistsError:
        file.chmod(0o600)
    finally:
        aside.unlink(missing_ok=True)
    return file
