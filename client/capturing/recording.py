"""One request to a model and its answer, copied while both pass through an HTTP client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from tandem.client.capturing.event_streams import assembled
from tandem.client.capturing.rollout import ANSWERS, Rollout

ENDPOINTS = {
    "/chat/completions": "chat_completions",
    "/completions": "completions",
    "/responses": "responses",
    "/messages": "messages",
}
"""Endings of a URL's path, the longer ones first, and their protocols."""
UNANSWERED, ABORTED, UNREADABLE = "no answer", "aborted", "unreadable"


def endpoint_of(method: str, url: str) -> str | None:
    """Return the protocol of a request; None if it doesn't ask a model."""
    path = urlsplit(url).path.rstrip("/")
    if method.upper() != "POST":
        return None
    return next((name for ending, name in ENDPOINTS.items() if path.endswith(ending)), None)


class Recording:
    """A request that was sent, and its answer as far as the agent has read it."""

    def __init__(self, rollout: Rollout, endpoint: str, request: dict[str, Any]):
        self.endpoint = endpoint
        """The protocol."""
        self.answer: dict[str, Any] | None = None
        """The answer's JSON, once it is whole."""
        self.fault = UNANSWERED
        """Why there is no answer."""
        self.is_sending = False
        """True while the patched `send` of a client handles the request, so that nothing else records it too."""
        self._request = request
        self._start = self._end = datetime.now(UTC)
        self._parts: list[bytes] | None = None
        """The body as it arrives, perhaps compressed; None before and after that."""
        self._is_stream = False
        self._unpacked: Callable[[bytes], bytes] = bytes
        rollout.add(self)

    def begin_answer(self, response: Any, module: Any) -> None:
        """Take the answer's status, and copy its body when the agent reads it."""
        if not response.is_success:
            self.fault = f"status {response.status_code}"
            return
        self.fault, self._is_stream = ABORTED, _header(response, "content-type").startswith("text/event-stream")
        try:
            body = response.content
        except RuntimeError:  # ResponseNotRead
            encoding = {"content-encoding": _header(response, "content-encoding")}
            self._unpacked = lambda packed: bytes(module.Response(200, headers=encoding, content=packed).content)
            self._parts = []
            kind = copying_streams(module)[not isinstance(response.stream, module.SyncByteStream)]
            response.stream = kind(response.stream, self)
        else:
            self._end = datetime.now(UTC)
            self._read(body)

    def feed(self, part: bytes) -> None:
        if self._parts is not None:
            self._parts.append(part)
            self._end = datetime.now(UTC)

    def finish(self) -> None:
        """Read the body: nothing more will come."""
        self.settle()
        self._parts = None

    def settle(self) -> None:
        """Read the body if the answer is whole: an agent may never close a stream whose last event it has read."""
        if self._parts is None:
            return
        try:
            body = self._unpacked(b"".join(self._parts))
        except Exception:  # each decoder has its own for a body that broke off
            return
        self._read(body)
        if self.answer is not None:
            self._parts = None

    def _read(self, body: bytes) -> None:
        try:
            answer = assembled(self.endpoint, body) if self._is_stream else json.loads(body)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            self.fault = ABORTED if self._is_stream else UNREADABLE
            return
        if isinstance(answer, dict) and isinstance(answer.get(ANSWERS[self.endpoint]), list):
            self.answer = answer
        else:
            self.fault = UNREADABLE

    def exchange(self) -> dict[str, Any]:
        """Return the exchange in the form that a trajectory's `exchanges` have."""
        assert self.answer is not None
        asked = self._request.get("model")
        return {
            "start_time": self._start.isoformat(),
            "end_time": self._end.isoformat(),
            "request": self._request,
            "response": self.answer,
            "model": asked if isinstance(asked, str) else self.answer.get("model"),
        }


def _header(response: Any, name: str) -> str:
    return str(response.headers.get(name, ""))


@lru_cache
def copying_streams(module: Any) -> tuple[type, type]:
    """Return the sync and async streams of httpx or httpx2 that copy what passes through them.

    The client's response checks the stream's class, so each library has its own.
    """

    class CopyingStream(module.SyncByteStream):  # type: ignore[misc]  # the module is chosen at run time
        def __init__(self, inner: Any, recording: Recording):
            self._inner, self._recording = inner, recording

        def __iter__(self) -> Iterator[bytes]:
            for part in self._inner:
                self._recording.feed(part)
                yield part
            self._recording.finish()

        def close(self) -> None:
            self._inner.close()
            self._recording.finish()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

    class AsyncCopyingStream(module.AsyncByteStream):  # type: ignore[misc]  # the module is chosen at run time
        def __init__(self, inner: Any, recording: Recording):
            self._inner, self._recording = inner, recording

        async def __aiter__(self) -> AsyncIterator[bytes]:
            parts = self._inner.__aiter__()
            try:
                async for part in parts:
                    self._recording.feed(part)
                    yield part
            finally:
                if hasattr(parts, "aclose"):
                    await parts.aclose()
            self._recording.finish()

        async def aclose(self) -> None:
            await self._inner.aclose()
            self._recording.finish()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

    return CopyingStream, AsyncCopyingStream
