"""The routes of an engine replica for samples, on its HTTP server.

POST START_PATH      a client's request: 200 once it is accepted, 400 with the reason, 429 if too many wait
POST FETCH_PATH      {"session", "seq", "hold_s", "max_bytes"}: the answer, held until there is one
                     200 protobuf, 206 with its size if that is above max_bytes, 202 with what it waits for, 422 failed,
                     410 gone
POST CANCEL_PATH     {"session", "seq", "started_by"}: 200, also if there is no such sample; see SampleFutures.cancel
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from pydantic_core import from_json

from tandem.cluster.engine.metrics.usage import charging
from tandem.cluster.engine.requests.completions import Pinned, read_whole
from tandem.cluster.engine.requests.openai_app import Receive, Scope, Send
from tandem.cluster.engine.samples.futures import (
    Announced,
    ClientLeftError,
    Failed,
    HandedBackError,
    Progress,
    SampleFutures,
    SampleGoneError,
    SampleLimits,
    SamplesFullError,
    Waiting,
)
from tandem.cluster.engine.samples.sample_body import SampleBody, SampleError, read_body
from tandem.cluster.engine.samples.sample_request import SampleRequest
from tandem.cluster.metrics.recording import count

PREFIX = "/tandem/samples/"
START_PATH, FETCH_PATH, CANCEL_PATH = PREFIX + "start", PREFIX + "fetch", PREFIX + "cancel"
PROTOBUF = b"application/x-protobuf"
MAX_HOLD_S = 60.0

Check = Callable[[SampleBody], SampleRequest]
Sample = Callable[[SampleRequest, str, str, Progress], Coroutine[Any, Any, bytes]]
Answer = bytes | Mapping[str, Any]


class Samples:
    """Answers the routes. `check` and `sample` are those of `EngineSampling`."""

    def __init__(self, check: Check, sample: Sample, base_model: str, limits: SampleLimits | None = None):
        self._check, self._sample, self._base_model = check, sample, base_model
        self.futures = SampleFutures(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_whole(receive)
        if body is None:
            return
        if scope["path"] == START_PATH:
            await _respond(send, *self._start(dict(scope["headers"]), body))
        elif scope["path"] == FETCH_PATH:
            with suppress(ClientLeftError):
                await _respond(send, *await self._fetch(body, receive))
        elif scope["path"] == CANCEL_PATH:
            await _respond(send, *self._cancel(body))
        else:
            await _respond(send, 404, {"error": f"The engine has no route {scope['path']}."})

    def _start(self, headers: Mapping[bytes, bytes], content: bytes) -> tuple[int, Answer]:
        pinned = Pinned.of(headers)
        id = headers.get(b"x-request-id", b"").decode("latin-1") or uuid.uuid4().hex
        try:
            body = read_body(content)
            request = self._check(body)
            key = body.sampling_session_id, body.seq_id
            with charging(pinned.charged):  # the task that starts here keeps it
                self.futures.start(
                    key,
                    hashlib.sha256(content).digest(),
                    request.num_samples,
                    partial(self._compute, request, pinned.digest, f"sample-{id}"),
                    by=id,
                )
        except SampleError as error:
            self._count("refused")
            return 400, {"error": str(error)}
        except SamplesFullError as error:
            self._count("full")
            return 429, {"error": str(error)}
        return 200, {"num_samples": request.num_samples}

    async def _compute(self, request: SampleRequest, digest: str, id: str, progress: Progress) -> bytes:
        outcome = "failed"
        try:
            answer = await self._sample(request, digest, id, progress)
            outcome = "sampled"
            return answer
        except SampleError:
            outcome = "refused"
            raise
        except (HandedBackError, asyncio.CancelledError):
            outcome = "dropped"
            raise
        finally:
            self._count(outcome)

    def _cancel(self, content: bytes) -> tuple[int, Answer]:
        asked: Any = from_json(content)
        self.futures.cancel((asked["session"], asked["seq"]), asked.get("started_by"))
        return 200, {}

    async def _fetch(self, content: bytes, receive: Receive) -> tuple[int, Answer]:
        asked: Any = from_json(content)
        key, hold_s = (asked["session"], asked["seq"]), min(asked["hold_s"], MAX_HOLD_S)

        async def leave() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        try:
            outcome = await self.futures.outcome(key, hold_s, leave, asked.get("max_bytes"))
        except SampleGoneError as error:
            return 410, {"error": str(error)}
        match outcome:
            case Waiting(is_paused, reason):
                return 202, {"is_paused": is_paused, "reason": reason}
            case Announced(num_bytes):
                return 206, {"num_bytes": num_bytes}
            case Failed(message, category):
                return 422, {"error": message, "category": category}
            case answer:
                return 200, answer

    def _count(self, outcome: str) -> None:
        count("tandem_sample_requests_total", base_model=self._base_model, outcome=outcome)


async def _respond(send: Send, status: int, answer: Answer) -> None:
    """Send JSON or a protobuf message."""
    content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    kind = PROTOBUF if isinstance(answer, bytes) else b"application/json"
    headers = [(b"content-type", kind), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": False})
