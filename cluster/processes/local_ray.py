"""A Ray on this machine alone: it listens on the loopback interface and asks every connection for a token.

Whoever reaches a Ray can run any code as the user who started it. By itself, Ray listens on all interfaces and keeps
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
from ray._private import ray_constants
from ray._private.parameter import RayParams
from ray._raylet import AuthenticationTokenLoader

AUTH_MODE = "RAY_AUTH_MODE"
TOKEN = "RAY_AUTH_TOKEN"
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
# Periods of what Ray does while nothing happens. Most of an idle service's CPU time would go there.
QUIET = {
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # default 0.1; health checks have periods of 5 s and more
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",  # default 100; Ray itself reports metrics every 10 s
}


@contextmanager
def local_ray(token_file: Path, with_job_server: bool = False, **options: Any) -> Iterator[None]:
    """A new Ray, which ends with the block. `options` are those of `ray.init`.

    `with_job_server`: programs can be submitted to it as Ray jobs, which takes Ray's dashboard, another process.
    The token is that of `token_file`, which is made if it isn't there; Ray's own environment variables come first.
    Processes started within the block inherit where it is, so that they can connect.
    """
    if TOKEN not in os.environ:
        os.environ.setdefault(TOKEN_PATH, str(ensure_token(token_file)))
    # torch.distributed, in vLLM and in learners, listens on the interface of the machine's name unless one is named.
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    # A replica that fails its health checks is ended at once: one that hangs can't use the time to end by itself.
    os.environ.setdefault("RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS", "1")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # Ray reads these once per process, at import or at the first use. A Ray that others may join, which is what it
    # makes on Linux, listens on all interfaces; one that they may not stays on the loopback one.
    AuthenticationTokenLoader.instance().reset_cache()
    others_may_join = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    # For processes that connect by themselves, as the job server and users' programs do.
    for_children = os.environ.get(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR)
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    try:
        # Without an explicit address Ray would join whatever cluster it finds on the machine. RAY_AUTH_MODE stays
        # unset: then Ray turns token authentication on itself, also in this process, where it is loaded already.
        # Jobs publish their logs through the log monitor, and so does a driver that shows those of its workers.
        has_log_monitor = with_job_server or options.get("log_to_driver", True)
        with _ray_parameters(dashboard_agent_listen_port=0, include_log_monitor=has_log_monitor, no_monitor=True):
            ray.init(address="local", include_dashboard=with_job_server, **options)
        yield
    finally:
        ray.shutdown()
        ray_constants.ENABLE_RAY_CLUSTER = others_may_join
        if for_children is None:
            del os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR]
        else:
            os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = for_children


def dead_processes() -> list[str]:
    """Which processes of this process's own Ray have ended, of those that it can't do without."""
    own = ray._private.worker._global_node  # None, or without processes, where this process has joined a Ray
    ended = {kind for kind, _ in own.dead_processes()} if own else set()
    return sorted(ended & {ray_constants.PROCESS_TYPE_GCS_SERVER, ray_constants.PROCESS_TYPE_RAYLET})


@contextmanager
def _ray_parameters(**parameters: Any) -> Iterator[None]:
    """Set parameters for which `ray.init` has no option.

    `dashboard_agent_listen_port=0`: with the fixed port, a second Ray on a machine would accept no jobs.
    `no_monitor`, `include_log_monitor`: without the autoscaler, which has nothing to do on one machine, and where
    nothing reads them without the publisher of logs, a start takes two processes less.
    """
    init = RayParams.__init__
    RayParams.__init__ = partialmethod(init, **parameters)
    try:
        yield
    finally:
        RayParams.__init__ = init


def token_authentication_is_on() -> bool:
    """Whether this process sends a token to Ray, and asks for one. Known once Ray is connected."""
    return os.environ.get(AUTH_MODE, "").lower() == "token"


def ensure_token(file: Path) -> Path:
    """Makes a random token in `file`, for this user alone, unless there is one. Returns the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}-{secrets.token_hex(8)}")
    try:
        with open(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as opened:
            opened.write(secrets.token_hex(32))
        os.link(aside, file)  # never over a token that another process has just made
    except FileExistsError:
        file.chmod(0o600)
    finally:
        aside.unlink(missing_ok=True)
    return file
