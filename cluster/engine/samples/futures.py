"""The samples of an engine replica: computed in the background, and kept until their clients have fetched them.

    futures = SampleFutures(limits)
    futures.start(("session", 7), digest_of_body, num_samples, work)      # returns at once
    match await futures.outcome(("session", 7), hold_s=25):
        case bytes() as answer: ...

Memory is bounded: by the number of samples that wait, by the size of answers that wait to be fetched, and in time. A
sample that nobody asks for any more is aborted: a client that is there asks again at once. Use it in one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from tandem.cluster.engine.samples.sample_body import SampleError
from tandem.cluster.errors import ClusterError

logger = logging.getLogger(__name__)
SWEEP_S = 1.0
ENTRY_BYTES = 1000
"""Of main memory, beside the answer itself."""
AWAITED_S = 5.0
"""A client whose last request for a sample is older has left, as far as the stop of the engine is concerned."""

Key = tuple[str, int]
"""A sampling session, and the number of the request in it."""


class SamplesFullError(ClusterError, RuntimeError):
    """As many samples wait as the engine may have. The client can send it again a little later."""


class SampleGoneError(ClusterError, LookupError):
    """The engine doesn't have the sample: it never got it, was restarted, or has dropped it."""


@dataclass(frozen=True)
class SampleLimits:
    max_waiting: int = 4096
    """Samples that aren't finished; a request for n counts n."""
    max_kept_bytes: int = 256 << 20
    """Of answers. Beyond it, the oldest are dropped."""
    abandoned_s: float = 60.0
    """A sample that isn't done, and that nobody has asked for so long, is aborted."""
    ttl_s: float = 300.0
    """An answer that nobody has asked for so long is dropped."""
    grace_s: float = 30.0
    """An answer can be fetched again so long after it was fetched."""


@dataclass
class Progress:
    """What a sample waits for."""

    is_paused: bool = False
    """Not for its turn, but for the engine."""
    reason: str | None = None


@dataclass(frozen=True)
class Waiting:
    is_paused: bool
    reason: str | None


@dataclass(frozen=True)
class Failed:
    message: str
    category: Literal["user", "server"]


class ClientLeftError(ClusterError, ConnectionError):
    """The client left while its request for a sample was held."""


@dataclass(frozen=True)
class Announced:
    """There is an answer, larger than the client takes now. It counts as not fetched."""

    num_bytes: int


class HandedBackError(ClusterError, RuntimeError):
    """The engine can't compute the sample, and another one may: the client has to send it again."""


Outcome = bytes | Announced | Waiting | Failed
Work = Callable[[Progress], Coroutine[Any, Any, bytes]]
"""Computes an answer. Raises SampleError, or HandedBackError; any other error is the service's."""
Leave = Callable[[], Coroutine[Any, Any, None]]
"""Ends once the client has left."""


@dataclass
class _Entry:
    body_digest: bytes
    num_samples: int
    asked_at: float
    started_by: str | None = None
    """The last request that started it; None once a client has asked for the answer, so that it knows the id."""
    progress: Progress = field(default_factory=Progress)
    task: asyncio.Task[None] | None = None
    num_holding: int = 0
    answer: bytes | Failed | None = None
    is_gone: bool = False
    fetched_at: float | None = None


class SampleFutures:
    """See the module."""

    def __init__(self, limits: SampleLimits | None = None, clock: Callable[[], float] = time.monotonic):
        self._limits, self._clock = limits or SampleLimits(), clock
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()  # the oldest first
        self._num_waiting = self._kept_bytes = 0
        self._sweeping: asyncio.Task[None] | None = None

    @property
    def num_waiting(self) -> int:
        """Samples that aren't finished."""
        return self._num_waiting

    @property
    def kept_bytes(self) -> int:
        return self._kept_bytes

    @property
    def num_awaited(self) -> int:
        """Requests whose clients are there and haven't got their answers."""
        since = self._clock() - AWAITED_S
        return sum(
            entry.fetched_at is None and (entry.num_holding > 0 or entry.asked_at >= since)
            for entry in self._entries.values()
        )

    def start(self, key: Key, body_digest: bytes, num_samples: int, work: Work, by: str | None = None) -> None:
        """Start a sample. One that was started before with the same body isn't started again.

        `by` names the request, for `cancel`.

        Raises SampleError if it was started with another body, and SamplesFullError.
        """
        if (known := self._entries.get(key)) is not None:
            if known.body_digest != body_digest:
                raise SampleError(f"seq_id {key[1]} of {key[0]} belongs to another request. Count up for each.")
            known.asked_at, known.started_by = self._clock(), by
            return
        if self._num_waiting and self._num_waiting + num_samples > self._limits.max_waiting:
            raise SamplesFullError(
                f"{self._num_waiting} samples wait for this engine, which takes {self._limits.max_waiting} "
                "(tinker.max_samples_waiting). Send the request again a little later."
            )
        entry = self._entries[key] = _Entry(body_digest, num_samples, self._clock(), by)
        self._num_waiting += num_samples
        entry.task = asyncio.create_task(self._run(key, entry, work))
        entry.task.add_done_callback(lambda _: self._free_place(num_samples))
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.create_task(self._sweep_often())

    async def outcome(
        self, key: Key, hold_s: float, leave: Leave | None = None, max_bytes: int | None = None
    ) -> Outcome:
        """Return the answer, once there is one or `hold_s` seconds have passed, or announce one beyond `max_bytes`.

        Raises SampleGoneError, and ClientLeftError if the client leaves first: then it hasn't got the answer.
        """
        entry = self._entries.get(key)
        if entry is None:
            raise SampleGoneError(f"The engine has no sample {key[1]} of {key[0]}.")
        entry.num_holding += 1
        entry.started_by = None
        try:
            if entry.task is not None and not entry.task.done():
                await _wait(entry.task, hold_s, leave)
        finally:
            entry.num_holding -= 1
            entry.asked_at = self._clock()
        if entry.is_gone:
            raise SampleGoneError(f"The engine couldn't finish sample {key[1]} of {key[0]}.")
        if entry.answer is None:
            return Waiting(entry.progress.is_paused, entry.progress.reason)
        if max_bytes is not None and isinstance(entry.answer, bytes) and len(entry.answer) > max_bytes:
            return Announced(len(entry.answer))
        entry.fetched_at = self._clock()
        return entry.answer

    def cancel(self, key: Key, started_by: str | None = None) -> None:
        """Abort a sample that isn't wanted any more, or drop its answer.

        With `started_by`, only if this request was the last one to start it, and nobody has asked for the answer since:
        a client that lost the connection sends its request again, and then waits for this very sample.
        """
        entry = self._entries.get(key)
        if entry is not None and started_by in (None, entry.started_by):
            self._drop(key)

    async def close(self) -> None:
        """Hand back the samples that aren't finished, and drop all answers."""
        for key in list(self._entries):
            self._drop(key)
        if self._sweeping is not None:
            self._sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeping

    def sweep(self) -> None:
        """Drop what has been fetched, and what nobody asks for."""
        now, limits = self._clock(), self._limits
        for key, entry in list(self._entries.items()):
            if entry.num_holding:
                continue
            is_fetched = entry.fetched_at is not None and now - entry.fetched_at > limits.grace_s
            unasked_s = limits.abandoned_s if entry.answer is None else limits.ttl_s
            if not is_fetched and now - entry.asked_at <= unasked_s:
                continue
            if entry.answer is None:
                logger.info("Sample %d of %s is aborted: nobody has asked for it for %g s", key[1], key[0], unasked_s)
            self._drop(key)

    async def _sweep_often(self) -> None:
        while self._entries:
            await asyncio.sleep(SWEEP_S)
            self.sweep()

    async def _run(self, key: Key, entry: _Entry, work: Work) -> None:
        try:
            entry.answer = await work(entry.progress)
        except SampleError as error:
            entry.answer = Failed(str(error), "user")
        except HandedBackError as error:
            logger.warning("Sample %d of %s is handed back: %s", key[1], key[0], error)
            entry.is_gone = True
        except asyncio.CancelledError:
            entry.is_gone = True  # whoever cancelled it, nobody computes it any more
            raise
        except Exception:
            logger.exception("Sample %d of %s failed", key[1], key[0])
            entry.answer = Failed("The engine failed on this request; its log says why.", "server")
        finally:
            self._ended(key, entry)

    def _ended(self, key: Key, entry: _Entry) -> None:
        if self._entries.get(key) is not entry:
            return  # it was dropped, and may have been started again
        if entry.is_gone:
            del self._entries[key]
        else:
            self._kept_bytes += _size(entry)
            self._shrink(key)

    def _free_place(self, num_samples: int) -> None:
        self._num_waiting -= num_samples

    def _shrink(self, newest: Key) -> None:
        """Drop answers beyond the limit: fetched ones first, then the oldest."""
        if self._kept_bytes <= self._limits.max_kept_bytes:
            return
        done = [key for key, entry in self._entries.items() if entry.answer is not None and key != newest]
        for key in sorted(done, key=lambda key: self._entries[key].fetched_at is None):
            if self._kept_bytes <= self._limits.max_kept_bytes:
                return
            self._drop(key)

    def _drop(self, key: Key) -> None:
        entry = self._entries.pop(key)
        entry.is_gone = True
        if entry.answer is not None:
            self._kept_bytes -= _size(entry)
        elif entry.task is not None:
            entry.task.cancel()


async def _wait(task: asyncio.Task[None], hold_s: float, leave: Leave | None) -> None:
    """Wait for the end of a task. Raises ClientLeftError."""
    if leave is None:
        await asyncio.wait({task}, timeout=hold_s)
        return
    leaving = asyncio.create_task(leave())
    try:
        await asyncio.wait({task, leaving}, timeout=hold_s, return_when=asyncio.FIRST_COMPLETED)
        if leaving.done() and not task.done():
            raise ClientLeftError("The client left before there was an answer.")
    finally:
        leaving.cancel()


def _size(entry: _Entry) -> int:
    return ENTRY_BYTES + (len(entry.answer) if isinstance(entry.answer, bytes) else 0)
