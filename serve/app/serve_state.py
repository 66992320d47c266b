"""What Ray Serve's controller says of Serve and its applications, as it says it.

`serve.status` asks the same, but makes models of the answer, for which it pickles a request router for each
deployment: 60 ms of a core, where the question takes 2. Who waits for a start asks often, and beside it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import ray
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview


def serve_details(timeout_s: float | None = None) -> dict[str, Any] | None:
    """The fields of `ray.serve.schema.ServeInstanceDetails`, without options that nobody has set; None where Serve
    doesn't run.

    Raises RayError where Serve has died or doesn't answer in time. Without a time, it may wait for ever.
    """
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return None
    return ray.get(client._controller.get_serve_instance_details.remote(), timeout=timeout_s)


def application_status(name: str) -> ApplicationStatusOverview | None:
    """An application as `serve.status` shows it; None where there is none. Raises and waits as `serve_details` does."""
    details = serve_details()
    if details is None or name not in details["applications"]:
        return None
    application = details["applications"][name]
    return ApplicationStatusOverview(
        status=application["status"],
        message=application["message"],
        last_deployed_time_s=application["last_deployed_time_s"],
        deployments={
            deployment: DeploymentStatusOverview(
                status=found["status"],
                status_trigger=found["status_trigger"],
                replica_states=dict(Counter(replica["state"] for replica in found["replicas"])),
                message=found["message"],
            )
            for deployment, found in application["deployments"].items()
        },
    )
