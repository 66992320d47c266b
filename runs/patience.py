"""Retries of a run's requests, long enough to outlast an engine that is replaced, a restart or a full queue."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import tenacity

from tandem.client import Retries
from tandem.runs.errors import ServiceAwayError

ID = re.compile(r"(?<=/)[0-9a-f-]{36}(?=/|$)")


@dataclass
class _Trouble:
    since: float
    num_attempts: int
    cause: str


class Patience(Retries):
    """Retry each request until requests of its kind have failed for `patience_s`.

    The time counts from the first failure after a success. All clients of a run share one object, so that trouble is
    reported once, however many rollouts notice it.
    """

    OBEYS_SHOULD_RETRY = False  # a run repeats even requests that took too long, instead of ending

    def __init__(self, patience_s: float, first_contact_s: float = 30.0, say: Callable[[str], None] = lambda _: None):
        """
        Args:
            patience_s: how long requests of a kind may fail.
            first_contact_s: the same until the first answer; until then, the address is probably wrong.
            say: receives a sentence when trouble of a kind begins and when it ends.
        """
        super().__init__(patience_s)
        self.stop = tenacity.stop_never  # `failed` raises
        self._first_contact_s, self._say = min(first_contact_s, patience_s), say
        self._troubles: dict[str, _Trouble] = {}
        self._has_answered = False
        self.num_troubles = 0
        """Failed attempts so far. If it hasn't changed, there was no trouble in between."""
        self.given_up: ServiceAwayError | None = None
        """The error that ends the run. It is kept here too because a rollout may catch it."""

    def longest_pause_s(self) -> float:
        return self.limit_s if self._has_answered else self._first_contact_s

    def failed(self, request: httpx.Request, cause: str) -> None:
        """Raise ServiceAwayError if requests of this kind have failed for too long."""
        kind, url, allowed_s = _kind(request), _service(request), self.longest_pause_s()
        now = time.monotonic()
        self.num_troubles += 1
        trouble = self._troubles.get(kind)
        if trouble is None:
            trouble = self._troubles[kind] = _Trouble(now, 0, cause)
            self._say(f"{url} doesn't answer {kind} ({cause}); retrying for up to {allowed_s:g} s.")
        trouble.num_attempts += 1
        trouble.cause = cause
        if now - trouble.since > allowed_s:
            self.given_up = ServiceAwayError(
                f"{url} hasn't answered {kind} for {now - trouble.since:.0f} s in {trouble.num_attempts} attempts. "
                f"The last cause: {cause}. Check {url}/health and the service's log, then run the same command again"
                f"{'' if self._has_answered else '; or the address is wrong'}."
            )
            raise self.given_up

    def answered(self, request: httpx.Request) -> None:
        self._has_answered = True
        kind = _kind(request)
        if trouble := self._troubles.pop(kind, None):
            elapsed_s = time.monotonic() - trouble.since
            attempts = f"{trouble.num_attempts} failed attempts"
            self._say(f"{_service(request)} answers {kind} again, after {elapsed_s:.0f} s and {attempts}.")


def _kind(request: httpx.Request) -> str:
    return f"{request.method} {ID.sub('…', request.url.path)}"


def _service(request: httpx.Request) -> str:
    return str(request.url.copy_with(raw_path=b"/")).rstrip("/")
