"""Requests that outlast trouble of the service: an engine that is replaced, a restart, a full queue.

All requests of a run are safe to repeat: completions change nothing, and a training job has its Idempotency-Key. So
they are repeated in one place, below every client of the run, the user's own use of `chat.client` included.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from tandem.runs.errors import ServiceAwayError

RETRIED_STATUSES = {408, 425, 429, 500, 502, 503, 504, 507}
ID = re.compile(r"(?<=/)[0-9a-f-]{36}(?=/|$)")
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0


@dataclass
class _Trouble:
    since: float
    num_attempts: int
    cause: str


class Patience:
    """How long each kind of request has gone unanswered. One object for all clients of a run."""

    def __init__(self, patience_s: float, first_contact_s: float = 30.0, say: Callable[[str], None] = lambda _: None):
        """
        Args:
            patience_s: how long requests of a kind may fail, counted from the first failure after a success.
            first_contact_s: the same until the service has answered anything: then it is the address that is wrong.
            say: is told when trouble of a kind begins and ends.
        """
        self._patience_s, self._first_contact_s, self._say = patience_s, min(first_contact_s, patience_s), say
        self._troubles: dict[str, _Trouble] = {}
        self._has_answered = False
        self.num_troubles = 0
        """Failed attempts so far: who sees it unchanged had no trouble in between."""
        self.given_up: ServiceAwayError | None = None
        """Why the run has to end. Rollouts may catch the exception, so it is kept here too."""

    @property
    def allowed_s(self) -> float:
        return self._patience_s if self._has_answered else self._first_contact_s

    def is_troubled(self, kind: str) -> bool:
        return kind in self._troubles

    def failed(self, kind: str, url: str, cause: str) -> None:
        """An attempt failed. Raises ServiceAwayError when that has lasted too long."""
        now = time.monotonic()
        self.num_troubles += 1
        trouble = self._troubles.get(kind)
        if trouble is None:
            trouble = self._troubles[kind] = _Trouble(now, 0, cause)
            self._say(f"{url} doesn't answer {kind} ({cause}); asking again for up to {self.allowed_s:g} s.")
        trouble.num_attempts += 1
        trouble.cause = cause
        if now - trouble.since > self.allowed_s:
            self.given_up = ServiceAwayError(
                f"{url} hasn't answered {kind} for {now - trouble.since:.0f} s, in {trouble.num_attempts} attempts; "
                f"the last cause: {cause}. Look at {url}/health and the service's log, then run the same command again"
                f"{'' if self._has_answered else '; or is the address wrong'}."
            )
            raise self.given_up

    def answered(self, kind: str, url: str) -> None:
        self._has_answered = True
        if trouble := self._troubles.pop(kind, None):
            elapsed_s = time.monotonic() - trouble.since
            self._say(
                f"{url} answers {kind} again, after {elapsed_s:.0f} s and {trouble.num_attempts} failed attempts."
            )


class PatientTransport(httpx.AsyncBaseTransport):
    """Repeats requests that aren't answered, or answered that they may be repeated, until patience ends."""

    def __init__(self, inner: httpx.AsyncBaseTransport, patience: Patience):
        self._inner, self._patience = inner, patience

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises ServiceAwayError."""
        kind = f"{request.method} {ID.sub('…', request.url.path)}"
        url = str(request.url.copy_with(raw_path=b"/")).rstrip("/")
        await request.aread()
        pause_s = FIRST_PAUSE_S
        while True:
            retry_after_s = 0.0
            try:
                response = await _read(await self._inner.handle_async_request(request))
            except httpx.TransportError as error:
                cause = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            else:
                if not _may_be_repeated(response):
                    self._patience.answered(kind, url)
                    return response
                cause, retry_after_s = f"{response.status_code}: {_text(response)}", _retry_after_s(response)
            self._patience.failed(kind, url, cause)
            # Spread out, because many rollouts fail at the same moment.
            await asyncio.sleep(min(max(retry_after_s, pause_s * random.uniform(0.5, 1)), self._patience.allowed_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def aclose(self) -> None:
        await self._inner.aclose()


async def _read(response: httpx.Response) -> httpx.Response:
    """The response with its body here, so that a connection lost in the middle of it is noticed while it can be
    repeated. A stream of events stays one."""
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        return response
    try:
        body = b"".join([chunk async for chunk in response.stream])
    finally:
        await response.aclose()
    return httpx.Response(response.status_code, headers=response.headers, content=body, extensions=response.extensions)


def _may_be_repeated(response: httpx.Response) -> bool:
    # Serve's proxy, just started, knows no routes yet and answers 404 in plain text; the service answers in JSON.
    is_json = response.headers.get("content-type", "").startswith("application/json")
    return response.status_code in RETRIED_STATUSES or (response.status_code == 404 and not is_json)


def _retry_after_s(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("retry-after", 0)))
    except ValueError:  # a date, which the service never sends
        return 0.0


def _text(response: httpx.Response) -> str:
    """What the service says of an error, in one line."""
    try:
        text = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        text = response.text
    return " ".join(str(text).split())[:300]
