"""Samples answered by the proxies themselves: a held request for a result takes no place of the API's requests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from tandem.serve.api.auth import Caller
from tandem.serve.api.bodies.json_body import JsonText
from tandem.serve.api.connection import while_connected
from tandem.serve.api.error_responses import error_content
from tandem.serve.api.request_ids import request_id
from tandem.serve.errors import QueueFullError
from tandem.serve.tinker.api.outcome_answers import most_bytes, outcome_answer
from tandem.serve.tinker.sampling.sample_ids import PREFIX
from tandem.serve.tinker.sampling.sampling import Sampling, request_name

ASAMPLE, RETRIEVE = "/api/v1/asample", "/api/v1/retrieve_future"
BACKPRESSURE = {"X-Tinker-Sampling-Backpressure": "1"}
"""With status 429, tells the SDK to wait a second and send the sample again, for as long as it takes."""
MAX_RETRIEVE_BYTES = 64 << 10
T = TypeVar("T")
_OF_A_SAMPLE = f'"{PREFIX}'.encode()


async def start_sample(request: Request, caller: Caller, body: JsonText, sampling: Sampling) -> Response:
    """Answer a POST of ASAMPLE. Raises the errors of `Sampling.start`, and ClientDisconnect."""
    name = request_name(request_id(request.scope))
    starting = asyncio.create_task(sampling.start(caller, body, name))
    try:
        sample, num = await while_connected(request, _end_of(starting))
    except (ClientDisconnect, asyncio.CancelledError):
        sampling.abort(caller, starting, name)
        raise
    except QueueFullError as error:
        return JSONResponse(error_content(error), 429, BACKPRESSURE)
    return JSONResponse({"request_id": str(sample), "sample_sequence_ids": sample.sequence_ids(num)})


async def fetch_sample(request: Request, caller: Caller, body: Mapping[str, Any], sampling: Sampling) -> Response:
    """Answer a POST of RETRIEVE for a sample. Raises the errors of `Sampling.outcome`, and ClientDisconnect."""
    id, takes_announcements = str(body.get("request_id")), body.get("allow_metadata_only") is True
    asking = sampling.outcome(caller, id, request_id(request.scope), most_bytes(takes_announcements))
    outcome = await while_connected(request, asking)
    return outcome_answer(outcome, id, takes_announcements, request.headers.get("accept", ""))


async def _end_of(starting: asyncio.Task[T]) -> T:
    """Return the result. A cancellation ends only the wait: the engine may have the sample already."""
    return await asyncio.shield(starting)


class ReadAhead:
    """The messages of a request, of which some are read before it is known who answers."""

    def __init__(self, receive: Receive):
        self._receive = receive
        self._read: list[Message] = []

    async def is_of_a_sample(self) -> bool:
        """Read the body of a POST of RETRIEVE, and return True if it asks for a sample."""
        content = b""
        while len(content) <= MAX_RETRIEVE_BYTES:
            message = await self._receive()
            self._read.append(message)
            content += message.get("body", b"")
            if not message.get("more_body"):
                break
        return _OF_A_SAMPLE in content

    async def receive(self) -> Message:
        """Return the messages from the beginning."""
        return self._read.pop(0) if self._read else await self._receive()
