"""The newest version of the trained model, for every part of a run that waits for one."""

from __future__ import annotations

import asyncio

from tandem.client import AsyncClient, Model
from tandem.runs.reporting.report import Progress
from tandem.runs.reporting.stopwatch import Stopwatch

WAIT_S = 30.0


class VersionWatch:
    """Asks the service for new versions, with one waiting request at a time, while `run` runs.

    A new version ends the training that made it, so it stops the stopwatch `training`, and only then wakes the tasks
    that wait for the version. Otherwise their work would count as work beside that training.
    """

    def __init__(self, client: AsyncClient, model: Model, progress: Progress, training: Stopwatch):
        self._client, self._model, self._progress, self._training = client, model, progress, training
        self.newest = progress.version = model.step
        self._changed = asyncio.Condition()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            if versions := await self._client.versions(self._model, self.newest, WAIT_S):
                await self.saw(versions[-1].step)

    async def saw(self, step: int) -> None:
        """Record that a version exists."""
        async with self._changed:
            if step > self.newest:
                self._training.stop()
            self.newest = self._progress.version = max(self.newest, step)
            self._changed.notify_all()

    async def at_least(self, step: int) -> None:
        """Wait for this version or a newer one."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.newest >= step)

    async def at_least_within(self, step: int, timeout_s: float) -> bool:
        """Return True once there is this version or a newer one, False after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.at_least(step)
        except TimeoutError:
            return False
        return True
