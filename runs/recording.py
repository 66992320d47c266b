"""Sends rollouts that no training job carries to the service, for people who look at them: evaluations, and failures.

It never holds up the run: what doesn't fit into a short queue is left out, a failure is reported once, and the end of
the run waits for a bounded time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import zstandard

from tandem.rl.environments.rollouts import RolledOutGroup, RolloutFailure
from tandem.rl.trajectories import TrajectoryGroup
from tandem.runs.reporting.report import Report

QUEUE = 16
"""Logs that wait to be sent."""
SEND_S = 60.0
END_S = 15.0
"""Seconds that the end of a run waits for logs."""
MAX_CAUSE = 500

Metadata = Mapping[str, str | int]


def described(group: RolledOutGroup, metadata: Metadata, version: int | None = None) -> TrajectoryGroup:
    """Return a group with metadata on each trajectory, and its failed rollouts as exceptions.

    Metadata of the environment stays. `version` sampled the rollouts that failed, if it is known.
    """
    about: dict[str, Any] = {} if version is None else {"policy_version": version}
    failed = [{**_exception(failure), **about, "metadata": dict(metadata)} for failure in group.failures]
    trajectories = [
        trajectory.model_copy(update={"metadata": {**metadata, **trajectory.metadata}})
        for trajectory in group.group.trajectories
    ]
    changes: dict[str, Any] = {"trajectories": trajectories}
    return group.group.model_copy(update=changes | ({"exceptions": failed} if failed else {}))


def _exception(failure: RolloutFailure) -> dict[str, Any]:
    name, _, text = failure.cause.partition(": ")
    return {"type": name, "message": (text or name)[:MAX_CAUSE], "rollout": failure.rollout}


class Recorder:
    """A queue of logs that are sent one after another."""

    def __init__(self, http: httpx.AsyncClient, model_id: str, report: Report):
        """`http` has the service's address and the key, and repeats no request: a repeated log would be another."""
        self._http, self._model_id, self._report = http, model_id, report
        self._queue: asyncio.Queue[tuple[str, Sequence[TrajectoryGroup]]] = asyncio.Queue(QUEUE)
        self._has_reported = False

    def offer(self, split: str, groups: Sequence[TrajectoryGroup]) -> None:
        """Have groups sent as a log with this split. Never waits, and never fails."""
        if not groups:
            return
        try:
            self._queue.put_nowait((split, groups))
        except asyncio.QueueFull:
            self._failed("too many wait")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Recorder]:
        """Send what is offered within the block, and at its end what is left of it, unless the block failed."""
        sending = asyncio.create_task(self._run())
        try:
            yield self
            await self._flush()
        finally:
            sending.cancel()

    async def _run(self) -> None:
        while True:
            split, groups = await self._queue.get()
            try:
                await self._send(split, groups)
            except Exception as error:  # never the run's end
                self._failed(f"{type(error).__name__}: {error}")
            finally:
                self._queue.task_done()

    async def _flush(self) -> None:
        try:
            async with asyncio.timeout(END_S):
                await self._queue.join()
        except TimeoutError:
            self._failed(f"{self._queue.qsize() + 1} weren't sent within {END_S:g} s")

    async def _send(self, split: str, groups: Sequence[TrajectoryGroup]) -> None:
        body = await asyncio.to_thread(_encoded, self._model_id, split, groups)
        headers = {"content-type": "application/json", "content-encoding": "zstd"}
        path = f"/v1/preview/models/{self._model_id}/log"
        answer = await self._http.post(path, content=body, headers=headers, timeout=SEND_S)
        if answer.is_error:
            self._failed(f"the service answered {answer.status_code}")

    def _failed(self, cause: str) -> None:
        if not self._has_reported:
            self._has_reported = True
            self._report.say(
                f"Some evaluations or failed rollouts can't be shown by the service ({cause}). Training isn't affected."
            )


def _encoded(model_id: str, split: str, groups: Sequence[TrajectoryGroup]) -> bytes:
    head = json.dumps({"model_id": model_id, "split": split}).removesuffix("}")
    content = ",".join(group.model_dump_json(exclude_unset=True) for group in groups)
    return zstandard.ZstdCompressor().compress(f'{head}, "trajectory_groups": [{content}]}}'.encode())
