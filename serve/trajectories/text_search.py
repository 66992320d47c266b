"""Searches the text of trajectories in their payloads, since no index has it.

A request reads a bounded amount and returns how far it came; the next one continues there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from types import TracebackType
from typing import Any, BinaryIO

import zstandard

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.errors import ArtifactError
from tandem.cluster.payloads.json_splitting import CHUNK_BYTES
from tandem.serve.store.uploads.trajectory_search import Filters, Found, Place, TrajectorySearch
from tandem.serve.trajectories.parts import NUMBERS, Parts, parts_of
from tandem.serve.trajectories.parts import Place as Part

BUDGET_S = 1.0
BUDGET_BYTES = 64 << 20
"""Of JSON that a request parses."""
MAX_BYTES = 64 << 20
"""A larger trajectory isn't searched."""
CANDIDATES_AT_ONCE = 500
AROUND = 80
"""Characters of an excerpt on each side of the match."""
NO_TEXT = NUMBERS | {"role", "type", "object", "id", "finish_reason", "model", "index", "tool_call_id"}


@dataclass(frozen=True)
class Match:
    """The first place in a trajectory that has the text."""

    place: str
    before: str
    match: str
    after: str


@dataclass
class Searched:
    """The outcome of a part of a search."""

    matches: list[tuple[Found, Match]] = field(default_factory=list)
    last: Place | None = None
    """The last trajectory that was searched; None if there was none left."""
    is_complete: bool = False
    num_unreadable: int = 0


def search(
    trajectories: TrajectorySearch,
    artifacts: Artifacts,
    filters: Filters,
    text: str,
    limit: int,
    after: Place | None,
    newest_first: bool,
    clock: Any = time.monotonic,
) -> Searched:
    """Search the matching trajectories after a place, in order of time, until `limit` are found or time is up.

    Upper and lower case are the same. Raises UnknownCursorError for `after`.
    """
    pattern, found = re.compile(re.escape(text), re.IGNORECASE), Searched(last=after)
    deadline, num_bytes = clock() + BUDGET_S, 0
    while True:
        candidates = trajectories.by_time(filters, CANDIDATES_AT_ONCE, found.last, newest_first)
        for source, rows in groupby(candidates, key=lambda one: one.source):
            with _Parts(artifacts, source.payload_key) as parts:
                for one in rows:
                    match = _search_one(parts, one, pattern, found)
                    num_bytes += one.row.num_bytes
                    found.last = source.id, one.row.group_index, one.row.trajectory_index
                    if match is not None:
                        found.matches.append((one, match))
                    if len(found.matches) == limit or num_bytes >= BUDGET_BYTES or clock() >= deadline:
                        return found
        if len(candidates) < CANDIDATES_AT_ONCE:
            found.is_complete = True
            return found


def _search_one(parts: _Parts, one: Found, pattern: re.Pattern[str], found: Searched) -> Match | None:
    row = one.row
    if row.num_bytes <= MAX_BYTES:
        try:
            raw = parts.read(row.start, row.num_bytes)
            return first_match(parts_of(Part(row.start, raw, is_failure=row.reward is None)), pattern)
        except ArtifactError:
            pass  # retention, or the model's deletion, was quicker
    found.num_unreadable += 1
    return None


def first_match(parts: Parts, pattern: re.Pattern[str]) -> Match | None:
    """Return the first match in a trajectory's texts."""
    for place, text in _texts(parts):
        if at := pattern.search(text):
            start, end = at.span()
            return Match(place, text[max(0, start - AROUND) : start], text[start:end], text[end : end + AROUND])
    return None


def _texts(parts: Parts) -> Iterator[tuple[str, str]]:
    """Iterate over the texts that a reader may look for, each with its place."""
    for number, history in enumerate(parts.histories):
        whose = f"history {number}, " if number else ""
        for index, turn in enumerate(history):
            for text in _strings(turn.message):
                yield f"{whose}turn {index}, {turn.role}", text
    for index, exchange in enumerate(parts.exchanges):
        for text in _strings(exchange.response):
            yield f"exchange {index}, answer", text
        for text in _strings(exchange.request):
            yield f"exchange {index}, request", text
    for line in parts.logs:
        yield "logs", line
    for name, value in parts.metadata.items():
        if isinstance(value, str):
            yield f"metadata {name}", value
    if parts.error:
        yield "error", parts.error


def _strings(value: Any) -> Iterator[str]:
    """Iterate over the strings in a value. The recursion is bounded: the JSON parser accepted the nesting."""
    if isinstance(value, str):
        yield value
        return
    children: Iterable[Any] = value if isinstance(value, list) else ()
    if isinstance(value, Mapping):
        children = (child for name, child in value.items() if name not in NO_TEXT)
    for child in children:
        yield from _strings(child)


class _Parts:
    """Parts of a payload, best read in their order."""

    def __init__(self, artifacts: Artifacts, key: str):
        self._artifacts, self._key = artifacts, key
        self._file: BinaryIO | None = None
        self._rest, self._place = b"", 0

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, start: int, num_bytes: int) -> bytes:
        """Return a part of the uncompressed payload. Raises ArtifactError."""
        try:
            if self._file is None or start < self._place:
                self._open()
            self._skip(start - self._place)
            chunks, size = [self._rest], len(self._rest)
            while size < num_bytes and (chunk := self._body.read(CHUNK_BYTES)):
                chunks.append(chunk)
                size += len(chunk)
            self._rest = b"".join(chunks)
        except zstandard.ZstdError as error:
            raise ArtifactError(f"Blob {self._key} is damaged: {error}.") from error
        if len(self._rest) < num_bytes:
            raise ArtifactError(f"Blob {self._key} is damaged: it ends too early.")
        return self._rest[:num_bytes]

    def _open(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._artifacts.open_blob(self._key)
        self._body = zstandard.ZstdDecompressor().stream_reader(self._file)
        self._rest, self._place = b"", 0

    def _skip(self, num_bytes: int) -> None:
        while num_bytes > len(self._rest):
            num_bytes -= len(self._rest)
            self._place += len(self._rest)
            self._rest = self._body.read(CHUNK_BYTES)
            if not self._rest:
                raise ArtifactError(f"Blob {self._key} is damaged: it ends too early.")
        self._rest = self._rest[num_bytes:]
        self._place += num_bytes
