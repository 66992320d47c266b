"""Alarms of a running service for the process that has started it: base models that can't be trained as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray import serve

from tandem.cli.deployment import APPLICATION
from tandem.cli.repeated_question import RepeatedQuestion

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
    """

    def __init__(self, ask: Callable[[], Mapping[str, str | None]] = coordinator_alarms):
        self.question = RepeatedQuestion[Mapping[str, str | None]](ask, {}, "alarms")
        self._shown: dict[str, str | None] = {}

    def new(self) -> list[str]:
        """Return the sentences that weren't returned before."""
        found = self.question.next_answer()
        sentences = [sentence for base, sentence in found.items() if sentence and self._shown.get(base) != sentence]
        self._shown |= found
        return sentences
