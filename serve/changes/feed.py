"""One look at the store for all viewers of this process, and what each of them hasn't seen yet."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from tandem.serve.changes.change import Change, Source
from tandem.serve.changes.history import History
from tandem.serve.changes.sources import AlertSource, JobSource, ModelSource
from tandem.serve.errors import NoAnswerError, TooManyStreamsError
from tandem.serve.store.store import Store

logger = logging.getLogger(__name__)
MARK_POLL_S = 0.05
"""How often the store is asked whether anything has changed, which takes microseconds."""
LOOK_S = 0.25
"""The least time between two looks: a running job changes the store many times a second."""
QUERY_POLL_S = 0.5
"""How often a store is queried that doesn't show its changes otherwise."""
KEPT_S = 60.0
"""How long a process keeps looking without a viewer, so that one whose connection broke misses nothing."""
STOP_POLL_S = 1.0
REVOKED = "The API key was revoked."
STOPPING = "This process of the service stops. Connect again."


@dataclass(eq=False)
class Viewer:
    """An open stream. Its feed changes `ended`."""

    key_id: str
    entity: str
    may_train: bool
    """The key may read training jobs."""
    ended: str | None = None
    """Why the stream has to end, as a sentence."""
    position: int = 0
    """The number of the last message that it got."""


async def never_stops() -> bool:
    return False


@dataclass
class ChangeFeed:
    """The changes that this process sees. Belongs to one event loop.

        viewer = await feed.join(key_id, entity, may_train)
        try:
            await feed.wait(viewer, HEARTBEAT_S)
            messages = feed.messages(viewer)        # None: some were lost
        finally:
            feed.leave(viewer)

    `stops` returns True once this process is being stopped: Ray Serve waits for open requests then.
    """

    store: Store
    max_viewers: int
    max_viewers_per_entity: int
    stops: Callable[[], Awaitable[bool]] = never_stops
    sources: Sequence[Source] = ()
    viewers: list[Viewer] = field(default_factory=list)
    history: History = field(default_factory=History)
    _looking: asyncio.Task[None] | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _first_look: asyncio.Lock = field(default_factory=asyncio.Lock)
    _idle_since: float = 0.0
    _stop_asked_at: float = 0.0

    async def join(self, key_id: str, entity: str, may_train: bool) -> Viewer:
        """Return a new viewer, which misses nothing from now on. Raises TooManyStreamsError and NoAnswerError."""
        self._check_room(entity)
        viewer = Viewer(key_id, entity, may_train)
        self.viewers.append(viewer)
        try:
            async with self._first_look:
                if self._looking is None or self._looking.done():
                    await self._begin()
        except BaseException:
            self.leave(viewer)
            raise
        viewer.position = self.history.newest
        return viewer

    def resume(self, viewer: Viewer, last_event_id: str) -> bool:
        """Let a viewer continue after a message. Return False if it has missed some that aren't kept any more."""
        number = self.history.number_of(last_event_id)
        if number is None or self.history.after(viewer.entity, number) is None:
            return False
        viewer.position = number
        return True

    def leave(self, viewer: Viewer) -> None:
        if viewer in self.viewers:
            self.viewers.remove(viewer)
            self._idle_since = time.monotonic()

    def position_id(self, viewer: Viewer) -> str:
        """Return the id after which the viewer can resume."""
        return self.history.id_of(viewer.position)

    def messages(self, viewer: Viewer) -> list[tuple[str, Change]] | None:
        """Return what the viewer hasn't got yet, with ids, and count it as sent. None if some of it is lost."""
        found = self.history.after(viewer.entity, viewer.position)
        viewer.position = self.history.newest
        if found is None:
            return None
        seen = [(number, change) for number, change in found if viewer.may_train or not change.needs_train]
        return [(self.history.id_of(number), change) for number, change in seen]

    async def wait(self, viewer: Viewer, timeout_s: float) -> bool:
        """Return True when there may be something for the viewer, False after the timeout."""
        if viewer.ended or self.history.after(viewer.entity, viewer.position) != []:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _check_room(self, entity: str) -> None:
        num_own = Counter(viewer.entity for viewer in self.viewers)[entity]
        for count, limit, whose in (
            (num_own, self.max_viewers_per_entity, f" of {entity}"),
            (len(self.viewers), self.max_viewers, ""),
        ):
            if count >= limit:
                raise TooManyStreamsError(
                    f"{count} streams of changes{whose} are open in this process of the service; the limit is {limit}. "
                    "Close pages that nobody looks at, or ask the operator to raise "
                    f"limits.max_streams{'_per_entity' if whose else ''}."
                )

    async def _begin(self) -> None:
        """Remember the present state, and look for changes from then on."""
        self.sources = self.new_sources()
        self.history = History()
        mark = self.store.database.change_mark()
        await asyncio.to_thread(lambda: [source.look() for source in self.sources])
        self._looking = asyncio.create_task(self._keep_looking(mark))

    def new_sources(self) -> list[Source]:
        """Return sources that haven't looked yet."""
        return [ModelSource(self.store.changes), JobSource(self.store.changes), AlertSource(self.store.changes)]

    async def _keep_looking(self, seen: object | None) -> None:
        while self.viewers or time.monotonic() - self._idle_since < KEPT_S:
            mark = self.store.database.change_mark()
            if mark is not None and mark == seen:
                await asyncio.sleep(MARK_POLL_S)
            else:
                seen = mark if await self._look() else None
                await asyncio.sleep(QUERY_POLL_S if mark is None else LOOK_S)
            await self._check_stop()

    async def _look(self) -> bool:
        """Add what has changed to the history. Return False if a part of the store couldn't be read."""
        is_whole = True
        looks: list[Callable[[], Awaitable[None]]] = [partial(self._publish, source) for source in self.sources]
        for look in (*looks, self._end_revoked):
            try:
                await look()
            except NoAnswerError:  # which is logged already
                is_whole = False
            except Exception:
                logger.exception("Changes of the store can't be read; the next attempt follows")
                is_whole = False
        return is_whole

    async def _publish(self, source: Source) -> None:
        if changes := await asyncio.to_thread(source.look):
            self.history.add(changes)
            self._wake()

    async def _end_revoked(self) -> None:
        viewers = list(self.viewers)
        revoked = await asyncio.to_thread(self.store.changes.revoked, {viewer.key_id for viewer in viewers})
        self._end([viewer for viewer in viewers if viewer.key_id in revoked], REVOKED)

    def _end(self, viewers: Sequence[Viewer], reason: str) -> None:
        for viewer in viewers:
            viewer.ended = reason
        if viewers:
            self._wake()

    async def _check_stop(self) -> None:
        if not self.viewers or time.monotonic() - self._stop_asked_at < STOP_POLL_S:
            return
        self._stop_asked_at = time.monotonic()
        try:
            is_stopping = await self.stops()
        except Exception:
            logger.warning("Ray Serve doesn't say whether this process is being stopped", exc_info=True)
            return
        if is_stopping:
            self._end(self.viewers, STOPPING)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
