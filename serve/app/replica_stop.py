"""Whether Ray Serve stops this replica. It waits for open requests then, and a stream of changes never ends by itself.

Serve calls nothing of a replica before it waits, so the controller's list of replicas is read.
"""

from __future__ import annotations

import asyncio

from ray.serve._private.common import ReplicaState
from ray.serve.context import ReplicaContext

from tandem.serve.app.serve_state import serve_details

ANSWER_S = 5.0


class ReplicaStop:
    """`await ReplicaStop(serve.get_replica_context()).is_requested()`."""

    def __init__(self, replica: ReplicaContext):
        self._application, self._deployment = replica.app_name, replica.deployment
        self._id = replica.replica_tag

    async def is_requested(self) -> bool:
        """Return True if the controller stops this replica. Raises RayError if it doesn't answer."""
        details = await asyncio.to_thread(serve_details, ANSWER_S)
        application = details and details["applications"].get(self._application)
        if not application or self._deployment not in application["deployments"]:
            return True
        replicas = application["deployments"][self._deployment]["replicas"]
        return all(
            replica["state"] == ReplicaState.STOPPING for replica in replicas if replica["replica_id"] == self._id
        )
