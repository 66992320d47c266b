"""The sleep of an engine while learners use its GPU: under leases, with the work that arrives meanwhile held back."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from tandem.cluster.errors import EngineAsleepError

logger = logging.getLogger(__name__)
CHECK_PERIOD_S = 0.2


class EngineSleep:
    """Lets an engine sleep while anybody holds a lease on its sleep.

        sleep = EngineSleep(fall_asleep, wake_up, hold_s, "my-model")
        async with sleep.awake():           # around each piece of work
            ...
        await sleep.lease(holder, lease_s)  # returns once the engine sleeps; repeat it to renew
        await sleep.release(holder)

    Work in progress ends before the engine sleeps, and new work waits until it is awake. A lease that isn't renewed
    ends by itself, so that the death of a holder can't leave the engine asleep.
    """

    def __init__(
        self,
        fall_asleep: Callable[[], Awaitable[None]],
        wake_up: Callable[[], Awaitable[None]],
        hold_s: float,
        name: str,
    ):
        """`fall_asleep` frees the engine's memory, and `wake_up` takes it back. Work waits for at most `hold_s`."""
        self._fall_asleep, self._wake_up, self._hold_s, self._name = fall_asleep, wake_up, hold_s, name
        self._leases: dict[str, float] = {}
        """The end of each holder's lease, by the monotonic clock."""
        self._num_working = 0
        self._is_asleep = False
        self._changed = asyncio.Condition()
        self._ending: asyncio.Task[None] | None = None

    @property
    def is_asleep(self) -> bool:
        return self._is_asleep

    @property
    def is_leased(self) -> bool:
        """New work has to wait."""
        return self._is_asleep or bool(self._leases)

    @asynccontextmanager
    async def awake(self) -> AsyncIterator[None]:
        """Keep the engine awake in the block. Raise EngineAsleepError if that doesn't begin within `hold_s`."""
        try:
            async with asyncio.timeout(self._hold_s), self._changed:
                await self._changed.wait_for(lambda: not self._leases and not self._is_asleep)
                self._num_working += 1
        except TimeoutError:
            raise EngineAsleepError(
                f"The engine of {self._name} has slept for {self._hold_s:g} s, because learners use its memory "
                "(engine.sleep). Retry later."
            ) from None
        try:
            yield
        finally:
            self._num_working -= 1
            await self._notify()

    async def lease(self, holder: str, lease_s: float) -> None:
        """Have the engine sleep for `lease_s` seconds from now. Return once it does. Raises as `fall_asleep` does.

        If the caller gives up before, its lease ends.
        """
        self._leases[holder] = math.inf  # the work in progress may take longer than the lease
        if self._ending is None or self._ending.done():
            self._ending = asyncio.create_task(self._end_leases())
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._num_working == 0)
                if not self._is_asleep:
                    await self._fall_asleep()
                    self._is_asleep = True
                self._leases[holder] = time.monotonic() + lease_s
        except BaseException:
            self._leases.pop(holder, None)
            await self._notify()
            raise

    async def release(self, holder: str) -> None:
        """End a holder's lease. Return once the engine is awake, or others keep it asleep. Raises as `wake_up` does."""
        self._leases.pop(holder, None)
        await self._wake_unless_leased()

    async def close(self) -> None:
        """Stop to watch the leases."""
        if self._ending is not None:
            self._ending.cancel()
            with suppress(asyncio.CancelledError):
                await self._ending

    async def _wake_unless_leased(self) -> None:
        async with self._changed:
            if self._is_asleep and not self._leases:
                await self._wake_up()
                self._is_asleep = False
            self._changed.notify_all()

    async def _end_leases(self) -> None:
        """End the leases that run out, and return when there are none."""
        while self._leases:
            await asyncio.sleep(CHECK_PERIOD_S)
            now = time.monotonic()
            for holder in [holder for holder, end in self._leases.items() if end <= now]:
                logger.warning("The engine of %s wakes up: the lease of %s wasn't renewed", self._name, holder)
                del self._leases[holder]
            await self._wake_unless_leased()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
