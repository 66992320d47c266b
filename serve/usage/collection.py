"""Brings what the engines have counted into the ledger, a few times a minute."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence

from tandem.cluster.engine.metrics.usage import EngineUsage
from tandem.serve.store.ledger.usage import Usage

logger = logging.getLogger(__name__)
PERIOD_S = 5.0
"""An engine that is killed loses what it has counted since."""
TIMEOUT_S = 10.0
FetchUsage = Callable[[dict[str, int], float], Sequence[EngineUsage | BaseException]]
"""Takes the last batch of each replica that is recorded, and a timeout in seconds. Returns what each has counted since,
or why it didn't answer."""


class UsageCollection:
    """A thread that fetches amounts and records them.

    Each amount is recorded once. A replica sends its batches again until it knows that they are recorded, and the store
    ignores batches that it has, whichever process brings them.
    """

    def __init__(
        self,
        usage: Usage,
        fetches: Sequence[FetchUsage],
        left: Callable[[], Iterable[EngineUsage]],
        period_s: float = PERIOD_S,
    ):
        """`fetches` ask the engines of a base model each; `left` takes what ended replicas have left."""
        self._usage, self._fetches, self._left, self._period_s = usage, fetches, left, period_s
        self._acknowledged: dict[str, int] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Collect once more, and end."""
        self._stopped.set()
        self._thread.join(2 * TIMEOUT_S * (len(self._fetches) + 1))

    def collect(self) -> None:
        """Fetch and record what there is now. Failures are logged; the next call gets the same amounts."""
        for fetch in self._fetches:
            try:
                for found in fetch(dict(self._acknowledged), TIMEOUT_S):
                    if isinstance(found, EngineUsage):
                        self._record(found)
            except Exception as error:  # an engine starts or is replaced
                logger.info("The amounts of an engine weren't fetched: %r", error)
        try:
            for found in self._left():
                self._record(found)
        except Exception as error:
            logger.info("The amounts of ended engines weren't recorded yet: %r", error)

    def _run(self) -> None:
        while True:
            is_last = self._stopped.wait(self._period_s)
            self.collect()
            if is_last:
                return

    def _record(self, found: EngineUsage) -> None:
        if found.batches:
            self._usage.record(found)
            self._acknowledged[found.source] = found.batches[-1].number
