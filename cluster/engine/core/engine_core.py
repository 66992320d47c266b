"""vLLM's engine core, a process with children of its own: started under a deadline, watched, and always ended."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import time
from argparse import Namespace
from collections.abc import Coroutine
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from tandem.cluster.engine.core.core_process import preload_core, preloaded_core
from tandem.cluster.engine.core.last_words import last_error
from tandem.cluster.engine.metrics.engine_stats import EngineStats
from tandem.cluster.errors import EngineDeadError
from tandem.cluster.processes.child_guard import ChildGuard

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)
T = TypeVar("T")

WATCH_PERIOD_S = 5.0
TICK_S = 0.5


class EngineCore:
    """The core's processes; `llm` is vLLM's client of them.

        core = EngineCore("my-model", answer_s=30)
        await core.start(args, timeout_s)
        core.watch()
        await core.unless_dead(core.llm.list_loras())
        await core.stop()

    The core schedules. Its model runs in the same process, or with tensor parallelism in one process for each part.
    None of them outlives this process, however that ends.
    """

    llm: AsyncLLM

    def __init__(self, served_name: str, answer_s: float):
        """A watched core that doesn't answer for `answer_s` seconds is killed."""
        self.served_name, self._answer_s = served_name, answer_s
        self._is_preloaded = False
        self._guard: ChildGuard
        self._processes: dict[int, psutil.Process] = {}
        self._watching: asyncio.Task[None]

    def preload(self) -> None:
        """Start to import vLLM for the core, while this process does the same for itself. Returns at once."""
        preload_core()
        self._is_preloaded = True

    async def start(self, args: Namespace, timeout_s: float, stats: EngineStats | None = None) -> None:
        """Start the core in a thread, because vLLM blocks. Raises TimeoutError, or vLLM's error.

        `stats` receives the core's load with each step.
        """
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._guard = ChildGuard()

        def create() -> AsyncLLM:
            with preloaded_core() if self._is_preloaded else nullcontext():
                loggers = [stats.logger()] if stats else None  # with any, vLLM collects its statistics
                return AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(args), stat_loggers=loggers)

        creation = asyncio.create_task(asyncio.to_thread(create))
        deadline = time.monotonic() + timeout_s
        while not creation.done() and time.monotonic() < deadline:
            await asyncio.wait({creation}, timeout=TICK_S)
            self._watch_processes()
        if not creation.done():
            creation.add_done_callback(lambda task: task.exception())
            self._kill()  # which also ends the thread
            raise TimeoutError(f"it took longer than {timeout_s:g} s and was killed.")
        self.llm = creation.result()

    def watch(self) -> None:
        """Kill the core once it doesn't answer in time; `check_health` then raises."""
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """End the core, even if it started only partly."""
        if hasattr(self, "_watching"):
            self._watching.cancel()
        if hasattr(self, "llm"):
            await asyncio.to_thread(self.llm.shutdown)
        if hasattr(self, "_guard"):
            await asyncio.to_thread(self._guard.close)

    def check_health(self) -> None:
        """Raise EngineDeadError if the core died, or was killed because it didn't answer."""
        if self.llm.errored:
            died = f"The vLLM engine core of {self.served_name} died.{last_error()}"
            raise EngineDeadError(died) from self.llm.dead_error

    async def unless_dead(self, answer: Coroutine[Any, Any, T]) -> T:
        """Return the core's answer. Raises EngineDeadError if it dies: only generations would notice by themselves."""
        task = asyncio.create_task(answer)
        try:
            while not (await asyncio.wait({task}, timeout=TICK_S))[0]:
                self.check_health()
            return task.result()
        finally:
            task.cancel()

    async def or_kill(self, purpose: str, answer: Coroutine[Any, Any, Any]) -> None:
        """Wait for the core to do what can't be half done. If it fails, kill the core. Raises EngineDeadError."""
        try:
            await self.unless_dead(answer)
        except EngineDeadError:
            raise
        except Exception as error:
            logger.exception("The vLLM core of %s didn't %s and is killed", self.served_name, purpose)
            self._kill()
            raise EngineDeadError(f"The vLLM engine core of {self.served_name} didn't {purpose}: {error}") from error

    async def _watch(self) -> None:
        """Poll the core, and kill it if it doesn't answer in time: calls then fail at once, and so do health checks."""
        from vllm.v1.engine.exceptions import EngineDeadError as CoreDeadError

        with suppress(CoreDeadError):
            while True:
                try:
                    async with asyncio.timeout(self._answer_s):
                        await self.llm.list_loras()
                except TimeoutError:
                    logger.error(
                        "The vLLM core of %s didn't answer for %g s and is killed", self.served_name, self._answer_s
                    )
                    return self._kill()
                await asyncio.sleep(WATCH_PERIOD_S)

    def _watch_processes(self) -> None:
        """Have the guard watch the core, and the processes that it has started for parts of the model."""
        for child in multiprocessing.active_children():
            with suppress(psutil.NoSuchProcess):
                core = psutil.Process(child.pid)
                for process in (core, *core.children(recursive=True)):
                    self._guard.watch(process.pid)
                    self._processes.setdefault(process.pid, process)

    def _kill(self) -> None:
        """Send SIGKILL to the core's processes, which also ends stopped ones."""
        for process in self._processes.values():
            with suppress(psutil.NoSuchProcess):
                process.kill()
