"""The application for `serve deploy` and KubeRay: `import_path: tandem.serve.deployment:application`.

There, Ray Serve owns the lifecycle: it starts the service, restarts it, and updates it in place when its
configuration changes. `tandem up` starts one that lives as long as its terminal.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import yaml
from ray import serve

from tandem.cluster.config import TandemConfig
from tandem.rl.yaml_files import load_mapping
from tandem.serve.app.graph import build_application

FILE = "config_file"
HTTP_VARIABLE = "TANDEM_HTTP"
SERVE_FIELDS = ("host", "port")  # of `http`: Serve takes them from its own http_options


def application(args: Mapping[str, object]) -> serve.Application:
    """Build the service, in a task on the cluster. Serve calls this with the `args` of the application.

    `args` are the contents of a tandem.yaml, or `config_file` alone: the path of one, which all nodes must have.
    Environment variables (`TANDEM_STORE_URL`) override both; secrets belong there. Raises ValueError with all faults.
    """
    return build_application(configuration(args))


def configuration(args: Mapping[str, object]) -> TandemConfig:
    """Return the configuration that `application` runs with. Raises ValueError."""
    if FILE not in args:
        config = TandemConfig.load(args)
        _reject_address(_http(args))
        return config
    if others := sorted(set(args) - {FILE}):
        raise ValueError(f"args have {FILE} and also {', '.join(others)}: move those into that file.")
    file = Path(str(args[FILE]))
    config = TandemConfig.load(file)
    _reject_address(_http(load_mapping(file)))
    return config


def _http(settings: Mapping[str, object]) -> set[str]:
    """Return the fields of `http` that the settings or the environment set."""
    http = settings.get("http")
    in_file = http if isinstance(http, Mapping) else {}
    in_one_variable = yaml.safe_load(os.environ.get(HTTP_VARIABLE, "{}"))
    names = (name.upper() for name in os.environ)
    alone = {name.removeprefix(f"{HTTP_VARIABLE}__").lower() for name in names if name.startswith(f"{HTTP_VARIABLE}__")}
    return {*in_file, *in_one_variable, *alone}


def _reject_address(fields: set[str]) -> None:
    """Raise ValueError for an address: Serve would ignore it, now or after the next change."""
    if twice := [name for name in SERVE_FIELDS if name in fields]:
        names = " and ".join(f"http.{name}" for name in twice)
        raise ValueError(
            f"{names} can't be set here: Ray Serve takes its address from http_options of its own configuration. "
            "Remove it from Tandem's configuration and from the environment (TANDEM_HTTP__...)."
        )
