"""Keeps the engines of a base model asleep while its learners work, for configurations with `engine.sleep`."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tandem.cluster.errors import StageError
from tandem.cluster.processes.deadlines import in_thread
from tandem.cluster.processes.waiting import WAIT_PERIOD_S, OnWait

logger = logging.getLogger(__name__)
Answers = Sequence[BaseException | None]
STAGE = "engine_sleep"


class EnginesAsleep:
    """Has all engines of a base model sleep while at least one block is open.

    with asleep.during("job 1", on_wait, learners_free_memory):
        ...

    The engines sleep under a lease, which is renewed in the background, so they wake up if this process dies. Engines
    that start meanwhile fall asleep with the next renewal. Thread-safe.
    """

    def __init__(
        self,
        sleep: Callable[[str, float, float], Answers],
        wake_up: Callable[[str, float], Answers],
        lease_s: float,
        drain_s: float,
        wake_s: float,
    ):
        """Make a keeper of sleep.

        Args:
            sleep: takes this holder's name, the seconds of the lease and a timeout in seconds. Returns for each engine
                None once it sleeps, or its error; raises TimeoutError.
            wake_up: the same, without a lease, once they are awake.
            drain_s: completions in progress end within this time.
            wake_s: deadline for all engines to wake up.
        """
        self._sleep, self._wake_up = sleep, wake_up
        self._lease_s, self._drain_s, self._wake_s = lease_s, drain_s, wake_s
        self._holder = uuid.uuid4().hex
        self._lock = threading.Lock()  # held while engines fall asleep or wake up
        self._num_open = 0
        self._done = threading.Event()
        self._renewing: threading.Thread

    @contextmanager
    def during(self, on_wait: OnWait, before_waking: Callable[[], None]) -> Iterator[None]:
        """Keep the engines asleep in the block. The last block that ends calls `before_waking` and wakes them up.

        Raises StageError if running completions don't end in time.
        """
        self._enter(on_wait)
        try:
            yield
        finally:
            self._leave(before_waking)

    def _enter(self, on_wait: OnWait) -> None:
        while not self._lock.acquire(timeout=WAIT_PERIOD_S):
            on_wait()
        try:
            if self._num_open == 0:
                self._fall_asleep(on_wait)
                self._done = threading.Event()
                self._renewing = threading.Thread(
                    target=self._renew, args=(self._done,), name="engine-sleep", daemon=True
                )
                self._renewing.start()
            self._num_open += 1
        finally:
            self._lock.release()

    def _fall_asleep(self, on_wait: OnWait) -> None:
        falling = in_thread(lambda: self._sleep(self._holder, self._lease_s, self._drain_s), "engines-fall-asleep")
        while True:
            try:
                answers = falling.result(WAIT_PERIOD_S)
                break
            except TimeoutError:
                if falling.done():
                    raise self._refusal("not all of them slept in time") from None
                on_wait()
        if late := [answer for answer in answers if isinstance(answer, TimeoutError)]:
            raise self._refusal(f"{len(late)} of {len(answers)} still answer completions")
        for answer in answers:
            if answer is not None:  # it died or is being replaced
                logger.warning("An engine didn't fall asleep and is left alone: %r", answer)

    def _refusal(self, what: str) -> StageError:
        return StageError(
            STAGE,
            f"The engines had {self._drain_s:g} s to end their completions and sleep, and {what}.",
            "With engine.sleep, sample between jobs only, or lower deadlines.inference_s.",
            retryable=True,
        )

    def _renew(self, done: threading.Event) -> None:
        while not done.wait(self._lease_s / 3):
            try:
                self._sleep(self._holder, self._lease_s, self._lease_s)
            except Exception as error:  # the next one may succeed; after the lease, the engines wake up
                logger.warning("The sleep of engines wasn't renewed: %r", error)

    def _leave(self, before_waking: Callable[[], None]) -> None:
        with self._lock:
            self._num_open -= 1
            if self._num_open:
                return
            self._done.set()
            try:
                before_waking()
            finally:
                self._renewing.join(self._lease_s)  # so that no renewal follows the call that wakes them
                self._wake()

    def _wake(self) -> None:
        """Wake the engines up. One that can't is replaced by its health check, and a lost call by the lease's end."""
        try:
            answers = self._wake_up(self._holder, self._wake_s)
        except Exception as error:
            logger.warning("The engines weren't woken up; they do it when the lease ends: %r", error)
            return
        for answer in answers:
            if answer is not None:
                logger.warning("An engine didn't wake up: %r", answer)
