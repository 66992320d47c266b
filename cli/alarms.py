"""Alarms of a running service for the process that has started it: base models that can't be trained as they are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from ray import serve

from tandem.cli.deployment import APPLICATION
from tandem.cluster.processes.deadlines import in_thread

logger = logging.getLogger(__name__)
ANSWER_S = 10.0


def coordinator_alarms() -> Mapping[str, str | None]:
    """Return the alarm of each base model, None where all is well. May raise, or never return."""
    handle: Any = serve.get_deployment_handle("coordinator", APPLICATION)
    status = handle.status.remote().result(timeout_s=ANSWER_S)
    return {base: own["alarm"] for base, own in status.items()}


class Alarms:
    """Reports each alarm once.

    alarms = Alarms()
    while running:
        for sentence in alarms.new(): ...

    A question runs in a thread, and `new` returns the answer to the one before: some calls of Ray never return.
    """

    def __init__(self, ask: Callable[[], Mapping[str, str | None]] = coordinator_alarms):
        self._ask = ask
        self._shown: dict[str, str | None] = {}
        self._asked: Future[Mapping[str, str | None]] | None = None

    def new(self) -> list[str]:
        """Return the sentences that weren't returned before."""
        found: Mapping[str, str | None] = {}
        if self._asked is not None and self._asked.done():
            found = self._asked.result()
        if self._asked is None or self._asked.done():
            self._asked = in_thread(self._answer, "alarms")
        sentences = [sentence for base, sentence in found.items() if sentence and self._shown.get(base) != sentence]
        self._shown |= found
        return sentences

    def _answer(self) -> Mapping[str, str | None]:
        try:
            return self._ask()
        except Exception:
            logger.debug("The coordinator doesn't answer", exc_info=True)
            return {}
