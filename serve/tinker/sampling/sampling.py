"""Starts samples on engine replicas and fetches them there. Nothing of a sample is kept on the way.

A sample has no effect, so it needs no journal: if its replica is lost, the client gets a 410 and sends it again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Collection, Mapping
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

from pydantic_core import from_json

from tandem.cluster.calls.call import PROTOBUF
from tandem.cluster.config.tinker import TinkerConfig
from tandem.cluster.engine.metrics.usage import Charged
from tandem.cluster.engine.requests.headers import CHARGED_HEADER, MODEL_HEADER, REPLICA_HEADER, VERSION_HEADER
from tandem.cluster.engine.samples.samples_app import CANCEL_PATH, FETCH_PATH, START_PATH
from tandem.cluster.errors import EngineDeadError, EngineLostError
from tandem.cluster.telemetry.context import TRACEPARENT, current_ids
from tandem.serve.api.auth import Caller
from tandem.serve.api.bodies.json_body import JsonText
from tandem.serve.api.services import EngineClient, Headers
from tandem.serve.errors import (
    BadRequestError,
    GoneError,
    NotFoundError,
    Problem,
    QueueFullError,
    UnavailableError,
)
from tandem.serve.names import quoted
from tandem.serve.tinker.sampling.known_samplers import KnownSamplers, Sampler
from tandem.serve.tinker.sampling.sample_ids import SampleId
from tandem.serve.tinker.store.outcomes import Announced, Answered, Failed, Outcome, Waiting

logger = logging.getLogger(__name__)
PLACE_S = 5.0
"""How long a new sample waits for an engine replica. Then its client waits with a request for the result."""
ANSWER_S = 10.0
"""Beyond the time that a request is held: a replica that doesn't answer then hangs."""
LOOK_S = 0.25
MAX_SEQ = (1 << 63) - 1


class Sampling:
    """The samples of this process's requests. Use it in one event loop."""

    def __init__(
        self, engine: EngineClient, samplers: KnownSamplers, config: TinkerConfig, base_models: Collection[str]
    ):
        self._engine, self._samplers, self._config, self._base_models = engine, samplers, config, base_models
        self._aborting: set[asyncio.Task[None]] = set()

    async def start(self, caller: Caller, body: JsonText, name: str) -> tuple[SampleId, int]:
        """Start the sample of a body. Return its id and the number of its sequences. `name`: see `request_name`.

        Raises BadRequestError for what can't be sampled, NotFoundError, QueueFullError if too many samples wait, and
        UnavailableError.
        """
        value = body.value
        session, seq = _numbered(value)
        sampler = await self._sampler(caller.entity, session)
        headers = _headers(sampler, caller, name)
        try:
            async with asyncio.timeout(PLACE_S):
                status, answered, content = await self._ask(sampler, START_PATH, headers, body.raw)
        except (TimeoutError, EngineDeadError) as error:
            logger.info("No engine of %s takes sample %d of %s yet: %s", sampler.base_model, seq, session, error)
            return SampleId(sampler.base_model, None, session, seq), _count(value)
        answer = _json(content)
        match status:
            case 200:
                return SampleId(sampler.base_model, dict(answered)[REPLICA_HEADER], session, seq), answer["num_samples"]
            case 400:
                raise BadRequestError([Problem(("body",), answer["error"])], "invalid_sample")
            case 429:
                raise QueueFullError(answer["error"])
        raise UnavailableError(
            f"The engine answered a request for samples with status {status}. Send it again; if that doesn't help, "
            f"search the engine's log for {name}.",
            "engine_failed",
        )

    async def outcome(self, caller: Caller, sample_id: str, request_id: str, max_bytes: int | None = None) -> Outcome:
        """Return the result of a sample, once there is one or `tinker.hold_s` has passed.

        One above `max_bytes` is only announced: the engine keeps it for as long as one that nobody has asked for.
        Raises NotFoundError, and GoneError if the client has to send the request again.
        """
        sample = SampleId.parse(sample_id)
        sampler = await self._sampler(caller.entity, sample.session)
        if sample.replica is None:
            return await self._when_served(sampler)
        asked = {"session": sample.session, "seq": sample.seq, "hold_s": self._config.hold_s, "max_bytes": max_bytes}
        try:
            async with asyncio.timeout(self._config.hold_s + ANSWER_S):
                body = json.dumps(asked).encode()
                status, _, content = await self._ask(
                    sampler, FETCH_PATH, _named(request_name(request_id)), body, sample.replica
                )
        except TimeoutError:
            return Waiting("The engine doesn't answer; it is replaced if that stays so", "paused_capacity")
        except EngineLostError as error:
            raise _gone(str(error)) from error
        match status:
            case 200:
                return Answered(content, PROTOBUF)
            case 206:
                return Announced(_json(content)["num_bytes"])
            case 202:
                waiting = _json(content)
                reason = waiting["reason"] or "The sample is being computed"
                return Waiting(reason, "paused_capacity" if waiting["is_paused"] else "active")
            case 422:
                failed = _json(content)
                return Failed(failed["error"], failed["category"])
            case 410:
                raise _gone(_json(content)["error"])
        raise UnavailableError(f"The engine answered a request for a sample with {status}.", "engine_failed")

    async def cancel(self, caller: Caller, sample_id: str, request_id: str) -> None:
        """Stop a sample, if it still runs. Raises NotFoundError."""
        await self._cancel(caller, SampleId.parse(sample_id), request_name(request_id))

    def abort(self, caller: Caller, starting: asyncio.Task[tuple[SampleId, int]], name: str) -> None:
        """Abort, once it is started, a sample whose client has left without its id. Returns at once.

        A sample that the client has started again meanwhile continues. `starting` runs `start` with this `name`.
        """
        aborting = asyncio.create_task(self._abort(caller, starting, name))
        self._aborting.add(aborting)
        aborting.add_done_callback(self._aborting.discard)

    async def _abort(self, caller: Caller, starting: asyncio.Task[tuple[SampleId, int]], name: str) -> None:
        try:
            sample, _ = await starting
            await self._cancel(caller, sample, name, started_by=name)
            logger.info("Sample %d of %s is aborted: its client left while it was sent", sample.seq, sample.session)
        except Exception as error:  # it was refused, or nothing is known of it
            logger.info("The request %s, whose client left, started no sample: %s", name, error)

    async def _cancel(self, caller: Caller, sample: SampleId, name: str, started_by: str | None = None) -> None:
        sampler = await self._sampler(caller.entity, sample.session)
        if sample.replica is None:
            return
        body = json.dumps({"session": sample.session, "seq": sample.seq, "started_by": started_by}).encode()
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._ask(sampler, CANCEL_PATH, _named(name), body, sample.replica)
        except (TimeoutError, EngineLostError) as error:
            logger.info("Sample %d of %s isn't cancelled: %s", sample.seq, sample.session, error)

    async def _sampler(self, entity: str, session: str) -> Sampler:
        sampler = await self._samplers.get(entity, session)
        if sampler.base_model not in self._base_models:
            raise NotFoundError(
                f"{quoted(session)} samples on {quoted(sampler.base_model)}, which isn't served here any more.",
                "model_not_found",
                "sampling_session_id",
            )
        return sampler

    async def _ask(
        self, sampler: Sampler, path: str, headers: Headers, body: bytes, replica: str | None = None
    ) -> tuple[int, Headers, bytes]:
        """Return status, headers and content of a replica's answer. Raises EngineDeadError."""
        call = self._engine.http(sampler.base_model, "POST", path, headers, body, sampler.digest, replica)
        async with aclosing(call) as items:
            start = await anext(items)
            assert isinstance(start, tuple)
            parts = [item async for item in items if isinstance(item, bytes)]
        return *start, b"".join(parts)

    async def _when_served(self, sampler: Sampler) -> Outcome:
        """Wait for an engine of a base model that had none; the client then sends its request again."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.hold_s
        while not await self._engine.serves(sampler.base_model):
            if loop.time() > deadline:
                return Waiting(f"The engine of {sampler.base_model} starts", "paused_capacity")
            await asyncio.sleep(LOOK_S)
        raise _gone(f"No engine of {sampler.base_model} ran when the sample was sent; now one does.")


def _headers(sampler: Sampler, caller: Caller, name: str) -> Headers:
    headers = [
        ("content-type", "application/json"),
        *_named(name),
        (MODEL_HEADER, quote(sampler.name)),
        (VERSION_HEADER, str(sampler.step)),
        (CHARGED_HEADER, Charged("sample", caller.entity, caller.key_id, sampler.model_id).header()),
    ]
    if (parent := current_ids().get(TRACEPARENT)) is not None:
        headers.append((TRACEPARENT, str(parent)))
    return headers


def request_name(id: str) -> str:
    """Return a name of its own for a request to the engine, which says in its log where it comes from."""
    return f"{id}-{random.getrandbits(32):08x}"


def _named(name: str) -> Headers:
    return [("x-request-id", name)]


def _numbered(value: Mapping[str, Any]) -> tuple[str, int]:
    """Return the sampling session and the number of a body. Raises BadRequestError."""
    session, seq = value.get("sampling_session_id"), value.get("seq_id")
    if not isinstance(session, str):
        message = "must be the id of a sampling session; create one with create_sampling_session"
        raise BadRequestError([Problem(("body", "sampling_session_id"), message)])
    if type(seq) is not int or not 0 <= seq <= MAX_SEQ:
        raise BadRequestError([Problem(("body", "seq_id"), "must be a number of its own for each request, from 0")])
    return session, seq


def _count(value: Mapping[str, Any]) -> int:
    num = value.get("num_samples", 1)
    return num if type(num) is int and num > 0 else 1


def _json(content: bytes) -> Any:
    try:
        return from_json(content)
    except ValueError:
        return {}


def _gone(message: str) -> GoneError:
    return GoneError(f"{message} Send the request for the sample again.", "sample_gone", "request_id")
