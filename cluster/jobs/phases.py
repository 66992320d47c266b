"""Where the time of a job goes: every second of an attempt belongs to one named phase, or is idle with a reason.

    clock = PhaseClock(claim, listeners)
    with clock, clock.phase("score"):
        ...
        with clock.phase("record"):     # not counted in "score"
            ...

The clock keeps the phases in order as `spans`, which the store records while the job runs, and tells listeners about
each phase that has ended.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, Protocol

from tandem.cluster.jobs.job import ClaimedJob

logger = logging.getLogger(__name__)
IDLE = "idle"
PHASES = {
    "queued": "accepted, and not claimed yet or given back",
    "wait_lease": "its process was lost; the next attempt waits until the lease has run out",
    "prepare": "reading the payload and turning it into packed rows, on a CPU",
    "start_learners": "placing and starting the learners",
    "wait_turn": "waiting while the learners work for other models",
    "engine_sleep": "waiting until the engines have left the GPU to the learners, or are back",
    "compare_engine": "comparing the engine with the learners on the base model",
    "load": "loading the version into the learners",
    "score": "computing logprobs before the first step, by learners and engines",
    "plot": "drawing the packed rows",
    "step": "gradient steps",
    "check_version": "checking that the new version is finite",
    "seal": "naming the new version",
    "checkpoint": "writing the checkpoint",
    "publish": "waiting until the engines have loaded the new version",
    "record": "writing to the store",
    IDLE: "none of these",
}
"""The names of phases. `queued` and `wait_lease` pass before an attempt, so no clock measures them."""
WITHOUT_LEARNERS = ("prepare", "start_learners", "wait_turn")
"""Phases in which a job uses no learner, even if it has the turn."""
MAX_SPANS = 300
"""Of an attempt. Later ones are added to a span of their name, whose seconds are then fewer than it spans."""
LEAST_S = 0.001
"""Shorter spans are added to the one before them."""


@dataclass(frozen=True)
class Phase:
    """A stretch of a job's time."""

    name: str
    began_at: float
    """Unix time."""
    ended_at: float
    seconds: float
    """Of this phase alone, without phases inside it."""
    reason: str | None = None
    """Why the job was idle, or waited."""
    learner_seconds: float = 0.0
    """Seconds in which the job had the learners' turn, times the number of learners."""
    cpu_seconds: float = 0.0
    """Of the thread that leads the job, and of the preparation process."""
    trained_tokens: int = 0
    """Tokens of packed rows that gradient steps went through."""
    scored_tokens: int = 0
    """Tokens scored by learners."""
    engine_scored_tokens: int = 0
    """Tokens scored by engines."""

    def __add__(self, later: Phase) -> Phase:
        """Return both as one phase with the name of this one."""
        return replace(
            self,
            ended_at=max(self.ended_at, later.ended_at),
            **{amount: getattr(self, amount) + getattr(later, amount) for amount in AMOUNTS},
        )


AMOUNTS = (
    "seconds",
    "learner_seconds",
    "cpu_seconds",
    "trained_tokens",
    "scored_tokens",
    "engine_scored_tokens",
)
"""The fields of a phase that add up."""

Outcome = Literal["succeeded", "failed", "cancelled", "handed_back", "requeued", "lost"]


class PhaseListener(Protocol):
    """Hears about the phases of jobs. It is called in the job's thread, so it must not block."""

    def phase_ended(self, job: ClaimedJob, phase: Phase) -> None:
        """A phase has ended. Its seconds leave out those of phases inside it, which ended before."""


@dataclass
class _Frame:
    """A phase that has begun and not ended."""

    name: str
    reason: str | None
    without_learners: str | None
    """Its name while the job hasn't got the learners."""
    parts: dict[str, Phase]
    """The stretches so far under each name."""


class PhaseClock:
    """Measures one attempt of a job, from `__enter__` to `__exit__`. `phase` belongs to the thread that entered.

    Thread-safe otherwise. The spans cover the attempt without gaps or overlaps.
    """

    def __init__(
        self,
        job: ClaimedJob | None = None,
        listeners: Sequence[PhaseListener] = (),
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ):
        """Without a job, no listener is told."""
        self._job, self._listeners, self._clock = job, listeners, clock
        self._lock = threading.RLock()
        self._frames: list[_Frame] = []
        self._spans: list[Phase] = []
        self._wall_offset = wall_clock() - clock()
        self._since = clock()
        self._learners = 0
        self._cpu: Callable[[], float] = lambda: 0.0
        self._cpu_since = 0.0
        self._extra_cpu_s = 0.0
        self._last = "the claim"

    @property
    def job_id(self) -> str:
        """Empty without a job."""
        return self._job.id if self._job else ""

    def __enter__(self) -> PhaseClock:
        with self._lock:
            thread_clock = time.pthread_getcpuclockid(threading.get_ident())
            self._cpu = lambda: time.clock_gettime(thread_clock)
            self._since, self._cpu_since = self._clock(), self._cpu()
            self._frames.append(_Frame(IDLE, None, None, {}))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(self._frames[0])
        self._cpu = lambda: self._cpu_since  # the thread may end now

    @contextmanager
    def phase(self, name: str, reason: str | None = None, without_learners: str | None = None) -> Iterator[None]:
        """Count the time of the block as this phase, except that of phases inside it.

        `without_learners` is the phase to which time belongs in which the job hasn't got the learners' turn.
        """
        if name not in PHASES:
            raise ValueError(f"{name!r} is no phase of a job; PHASES has their names.")
        frame = _Frame(name, reason, without_learners, {})
        with self._lock:
            self._cut()
            self._frames.append(frame)
        try:
            yield
        finally:
            self._end(frame)

    def has_learners(self, count: int) -> None:
        """From now on, the job has this many learners, 0 while it isn't its turn."""
        with self._lock:
            self._cut()
            self._learners = count

    def count(
        self, *, trained_tokens: int = 0, scored_tokens: int = 0, engine_scored_tokens: int = 0, cpu_seconds: float = 0
    ) -> None:
        """Add to the amounts of the running phase."""
        with self._lock:
            self._extra_cpu_s += cpu_seconds
            self._cut(trained_tokens, scored_tokens, engine_scored_tokens)

    def spans(self) -> list[Phase]:
        """Return the phases so far in order, the running one up to now."""
        with self._lock:
            self._cut()
            return list(self._spans)

    def _end(self, frame: _Frame) -> None:
        with self._lock:
            self._cut()
            while self._frames.pop() is not frame:
                pass
            self._last = frame.name
        if self._job is None:
            return
        for part in frame.parts.values():
            for listener in self._listeners:
                try:
                    listener.phase_ended(self._job, part)
                except Exception:
                    logger.exception("A listener failed on phase %s of job %s", part.name, self._job.id)

    def _cut(self, trained_tokens: int = 0, scored_tokens: int = 0, engine_scored_tokens: int = 0) -> None:
        """Add the time since the last cut to the running phase."""
        now, since = self._clock(), self._since
        self._since = now
        if not self._frames:
            return
        frame = self._frames[-1]
        cpu = self._cpu()
        name = frame.name if self._learners or frame.without_learners is None else frame.without_learners
        learners = 0 if name in WITHOUT_LEARNERS else self._learners
        part = Phase(
            name=name,
            began_at=since + self._wall_offset,
            ended_at=now + self._wall_offset,
            seconds=now - since,
            reason=frame.reason or (f"after {self._last}" if name == IDLE else None),
            learner_seconds=(now - since) * learners,
            cpu_seconds=cpu - self._cpu_since + self._extra_cpu_s,
            trained_tokens=trained_tokens,
            scored_tokens=scored_tokens,
            engine_scored_tokens=engine_scored_tokens,
        )
        self._cpu_since, self._extra_cpu_s = cpu, 0.0
        frame.parts[name] = frame.parts[name] + part if name in frame.parts else part
        self._append(part)

    def _append(self, part: Phase) -> None:
        spans = self._spans
        if spans and (_is_same(spans[-1], part) or _is_tiny(part)):
            spans[-1] += part
            return
        if spans and _is_tiny(spans[-1]):  # the first one
            part = replace(part, began_at=spans[-1].began_at) + spans.pop()
        if len(spans) >= MAX_SPANS:
            place = next((place for place, span in enumerate(spans) if _is_same(span, part)), None)
            if place is not None:
                spans[place] += part
                return
        spans.append(part)


def _is_tiny(span: Phase) -> bool:
    return span.seconds < LEAST_S and not (span.trained_tokens or span.scored_tokens or span.engine_scored_tokens)


def _is_same(one: Phase, other: Phase) -> bool:
    return one.name == other.name and one.reason == other.reason
