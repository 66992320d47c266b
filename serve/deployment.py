"""What `serve deploy` and KubeRay build the service from: `import_path: tandem.serve.deployment:application`.

There, Ray Serve owns the lifecycle: it starts the service, restarts it, and updates it in place when its
configuration changes. `tandem up` does the same for one that lives as long as a terminal.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import yaml
from ray import serve

from tandem.cluster.config import TandemConfig
from tandem.serve.app.deployments import build_application

FILE = "config_file"
HTTP_VARIABLE = "TANDEM_HTTP"
OF_SERVE = ("host", "port")  # of `http`: here they are http_options of the Serve configuration


def application(args: Mapping[str, object]) -> serve.Application:
    """Builds the service, in a task on the cluster. Serve calls this with the `args` of the application.

    `args` are what a tandem.yaml holds, or `config_file` alone: the path of one, which all nodes must have. Environment
    variables (`TANDEM_STORE_URL`) go before both; a secret belongs there. Raises ValueError, which lists the faults.
    """
    return build_application(configuration(args))


def configuration(args: Mapping[str, object]) -> TandemConfig:
    """What `application` runs with. Raises ValueError."""
    source: Mapping[str, object] | Path = args
    if FILE in args:
        if others := sorted(set(args) - {FILE}):
            raise ValueError(f"args have {FILE} and also {', '.join(others)}: put those into that file.")
        source = Path(str(args[FILE]))
    config = TandemConfig.load(source)
    _refuse_address(_http(args if source is args else yaml.safe_load(source.read_text()) or {}))
    return config


def _http(settings: Mapping[str, object]) -> set[str]:
    """Which fields of `http` are set, in the file or the environment."""
    in_file = settings.get("http") or {}
    in_one_variable = yaml.safe_load(os.environ.get(HTTP_VARIABLE, "{}"))
    names = (name.upper() for name in os.environ)
    alone = {name.removeprefix(f"{HTTP_VARIABLE}__").lower() for name in names if name.startswith(f"{HTTP_VARIABLE}__")}
    return {*in_file, *in_one_variable, *alone}


def _refuse_address(fields: set[str]) -> None:
    """One that differs from where Serve listens would be ignored, and one that doesn't would be at the next change."""
    if twice := [name for name in OF_SERVE if name in fields]:
        names = " and ".join(f"http.{name}" for name in twice)
        raise ValueError(
            f"{names} can't be set here: Ray Serve listens where http_options of its own configuration say. "
            "Take it out of Tandem's configuration, and out of the environment (TANDEM_HTTP__...)."
        )
