"""The newest version of the model that is trained, for all parts of a run that wait for one."""

from __future__ import annotations

import asyncio

from tandem.runs.report import Progress
from tandem.runs.service import RegisteredModel, TrainingService
from tandem.runs.stopwatch import Stopwatch


class VersionWatch:
    """Asks the service for new versions, one waiting request at a time, while `run` runs.

    A new version is the end of the training that made it, so it stops `training`: before anyone is told of it, or what
    begins with the version would count as beside that training.
    """

    def __init__(self, service: TrainingService, model: RegisteredModel, progress: Progress, training: Stopwatch):
        self._service, self._model, self._progress, self._training = service, model, progress, training
        self.newest = progress.version = model.step
        self._changed = asyncio.Condition()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            steps = await self._service.versions_after(self._model.id, self.newest)
            if steps:
                await self.saw(steps[-1])

    async def saw(self, step: int) -> None:
        """Takes notice of a version."""
        async with self._changed:
            if step > self.newest:
                self._training.stop()
            self.newest = self._progress.version = max(self.newest, step)
            self._changed.notify_all()

    async def at_least(self, step: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.newest >= step)

    async def at_least_within(self, step: int, timeout_s: float) -> bool:
        """Whether the version was there by then."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.at_least(step)
        except TimeoutError:
            return False
        return True
