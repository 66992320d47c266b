"""GET /v1/preview/changes: a stream that says what has changed, so that pages needn't ask again and again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from tandem.serve.api.auth import InferCaller
from tandem.serve.api.services import ServicesDep
from tandem.serve.changes.feed import ChangeFeed, Viewer
from tandem.serve.keys import ROLES

HEARTBEAT_S = 15.0
RETRY_MS = 2000
UNBUFFERED = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}  # for proxies in between
MISSED = "Some messages aren't kept any more. Read again what you show."

router = APIRouter(prefix="/preview", tags=["changes"])


class ChangeStream(StreamingResponse):
    """The messages of one viewer, who leaves the feed when the response ends, however it ends."""

    media_type = "text/event-stream"

    def __init__(self, feed: ChangeFeed, viewer: Viewer, last_event_id: str | None, seconds: float | None):
        super().__init__(_messages(feed, viewer, last_event_id, seconds), headers=UNBUFFERED)
        self._feed, self._viewer = feed, viewer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._feed.leave(self._viewer)


@router.get("/changes", status_code=200, response_class=ChangeStream)
async def stream_changes(
    caller: InferCaller,
    services: ServicesDep,
    last_event_id: Annotated[str | None, Header()] = None,
    seconds: Annotated[float | None, Query(ge=0, le=86400, description="End the stream after this time.")] = None,
) -> ChangeStream:
    """Stream what changes in the entity, as server-sent events. Each message says what is new, not its content.

    The first message is `ready`: whatever changes from then on has a message. `job`: a job is new, or its state has
    changed. `event`: a job has another event. `version`: a model has a new version. `model`: one was created or
    deleted. Keys with role infer get `version` and `model` alone. With the header `Last-Event-ID`, the stream continues
    after that message; `reset` instead of `ready` says that messages are missing, so read again what you show. `end`
    is the last message, if the service ends the stream. Comments every 15 seconds show that the connection lives.
    """
    may_train = ROLES.index(caller.role) >= ROLES.index("train")
    viewer = await services.change_feed.join(caller.key_id, caller.entity, may_train)
    return ChangeStream(services.change_feed, viewer, last_event_id, seconds)


async def _messages(
    feed: ChangeFeed, viewer: Viewer, last_event_id: str | None, seconds: float | None
) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    end = None if seconds is None else loop.time() + seconds
    is_missing = last_event_id is not None and not feed.resume(viewer, last_event_id)
    yield _reset(feed, viewer) if is_missing else _message("ready", {}, feed.position_id(viewer), RETRY_MS)
    while True:
        found = feed.messages(viewer)
        if found is None:
            yield _reset(feed, viewer)
        for id, change in found or ():
            yield _message(change.kind, change.data, id)
        if viewer.ended is not None:
            yield _message("end", {"reason": viewer.ended}, None)
            return
        remaining = HEARTBEAT_S if end is None else min(HEARTBEAT_S, end - loop.time())
        if remaining <= 0:
            return
        if not await feed.wait(viewer, remaining) and remaining == HEARTBEAT_S:
            yield format_sse_event(comment="still here")


def _reset(feed: ChangeFeed, viewer: Viewer) -> bytes:
    return _message("reset", {"reason": MISSED}, feed.position_id(viewer), RETRY_MS)


def _message(kind: str, data: Any, id: str | None, retry: int | None = None) -> bytes:
    return format_sse_event(data_str=to_json(data).decode(), event=kind, id=id, retry=retry)
