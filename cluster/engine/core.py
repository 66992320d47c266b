"""vLLM's engine core, a process of its own: started under a deadline, watched, ended with all that it holds."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import time
from argparse import Namespace
from collections.abc import Coroutine
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from tandem.cluster.engine.core_process import preload_core, preloaded_core
from tandem.cluster.errors import EngineDeadError
from tandem.cluster.processes.child_guard import ChildGuard

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)
T = TypeVar("T")

WATCH_PERIOD_S = 5.0
TICK_S = 0.5


class EngineCore:
    """`llm` is vLLM's client of the core.

        core = EngineCore("my-model", answer_s=30)
        await core.start(args, timeout_s)
        core.watch()
        await core.unless_dead(core.llm.list_loras())
        await core.stop()

    It doesn't outlive this process, however that ends.
    """

    llm: AsyncLLM

    def __init__(self, served_name: str, answer_s: float):
        """A core that is watched and doesn't answer for `answer_s` is ended."""
        self._served_name, self._answer_s = served_name, answer_s
        self._is_preloaded = False
        self._guard: ChildGuard
        self._watching: asyncio.Task[None]

    def preload(self) -> None:
        """Start to import vLLM for the core, while this process does the same for itself. Returns at once."""
        preload_core()
        self._is_preloaded = True

    async def start(self, args: Namespace, timeout_s: float) -> None:
        """Raises TimeoutError, or what vLLM raises. vLLM blocks until the core is up, so it does that in a thread."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._guard = ChildGuard()

        def create() -> AsyncLLM:
            with preloaded_core() if self._is_preloaded else nullcontext():
                return AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(args))

        creation = asyncio.create_task(asyncio.to_thread(create))
        deadline = time.monotonic() + timeout_s
        while not creation.done() and time.monotonic() < deadline:
            await asyncio.wait({creation}, timeout=TICK_S)
            for process in multiprocessing.active_children():
                self._guard.watch(process.pid)
        if not creation.done():
            creation.add_done_callback(lambda task: task.exception())
            _kill_children()  # the thread ends when it sees that
            raise TimeoutError(f"it took longer than {timeout_s:g} s, and was ended.")
        self.llm = creation.result()

    def watch(self) -> None:
        """From now on, a core that gives no answer in time is ended, and `check_health` tells."""
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Ends the core, also one that has started only in part."""
        if hasattr(self, "_watching"):
            self._watching.cancel()
        if hasattr(self, "llm"):
            await asyncio.to_thread(self.llm.shutdown)
        if hasattr(self, "_guard"):
            await asyncio.to_thread(self._guard.close)

    def check_health(self) -> None:
        """Raises EngineDeadError when the core has died, or was ended because it gave no answer."""
        if self.llm.errored:
            raise EngineDeadError(f"The vLLM engine core of {self._served_name} has died.") from self.llm.dead_error

    async def unless_dead(self, answer: Coroutine[Any, Any, T]) -> T:
        """What the core answers. When it dies, vLLM fails generations, but other calls would wait for ever."""
        task = asyncio.create_task(answer)
        try:
            while not (await asyncio.wait({task}, timeout=TICK_S))[0]:
                self.check_health()
            return task.result()
        finally:
            task.cancel()

    async def _watch(self) -> None:
        """Asks the core for an answer again and again. One that gives none in time is killed: what waits for it then
        fails at once, and health checks see it."""
        from vllm.v1.engine.exceptions import EngineDeadError as CoreDeadError

        with suppress(CoreDeadError):
            while True:
                try:
                    async with asyncio.timeout(self._answer_s):
                        await self.llm.list_loras()
                except TimeoutError:
                    logger.error("The vLLM core of %s gave no answer for %g s", self._served_name, self._answer_s)
                    return _kill_children()
                await asyncio.sleep(WATCH_PERIOD_S)


def _kill_children() -> None:
    """SIGKILL also ends processes that are stopped."""
    for process in multiprocessing.active_children():
        process.kill()
