"""Accepts the ordered calls of a run into the journal.

The SDK counts a call before it sends it, so a call whose number can be read is journalled even if its content is
refused: it has failed, and its result says why. Otherwise the calls behind it would wait for the number.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, Generic, TypeVar

from fastapi import Request

from tandem.cluster.calls.call import CallKind
from tandem.serve.api.auth import Caller
from tandem.serve.api.bodies.json_body import JsonText, json_text, parse
from tandem.serve.api.services import ServicesDep
from tandem.serve.errors import InvalidRequestError, NotFoundError, Problem, ServeError
from tandem.serve.tinker.api.context import Tinker
from tandem.serve.tinker.wire.requests import MAX_SEQ, SdkBody
from tandem.serve.tinker.wire.responses import Future

C = TypeVar("C", bound=SdkBody)
NO_SEQ = "must be the number of the call: 1, 2, 3, ... for each model"
OF_THE_NUMBER = ("run_not_found", "sequence_number_reused", "sequence_number_too_high")
"""Codes of refusals without a call that could have a result."""
_OF_EACH_ATTEMPT = ("type", "sampling_session_seq_id")
"""Fields that don't tell a call from another: the SDK counts the second one up each time that it repeats a request."""


@dataclass(frozen=True)
class Ordered(Generic[C]):
    """A JSON call whose model and number are known.

    Attributes:
        value: the call; None if its content is refused.
        refusal: why, for the user.
        sha256: the hash of what tells it from another call of the same number.
    """

    model_id: str
    seq: int
    value: C | None
    refusal: str
    sha256: str


def ordered_body(model: type[C]) -> Callable[[Request, ServicesDep], Awaitable[Ordered[C]]]:
    """Return a dependency that gives the body as a call. It raises InvalidRequestError without model and number."""

    async def read(request: Request, services: ServicesDep) -> Ordered[C]:
        return ordered(model, await json_text(request, services))

    return read


def ordered(model: type[C], text: JsonText) -> Ordered[C]:
    """Return a JSON body as a call. Raises InvalidRequestError without model and number."""
    model_id, seq = place_of(text.value)
    value: C | None = None
    refusal = ""
    try:
        value = parse(model.model_validate_json, text.raw)
    except InvalidRequestError as error:
        refusal = sentence(error)
    return Ordered(model_id, seq, value, refusal, digest(text.value))


def place_of(body: Mapping[str, Any]) -> tuple[str, int]:
    """Return the model and the number of a call. Raises InvalidRequestError."""
    model_id, seq = body.get("model_id"), body.get("seq_id")
    problems = []
    if not isinstance(model_id, str):
        problems.append(Problem(("body", "model_id"), "is missing; send the id that create_model gave"))
    if not isinstance(seq, int) or isinstance(seq, bool) or not 1 <= seq <= MAX_SEQ:
        problems.append(Problem(("body", "seq_id"), NO_SEQ))
    if problems:
        raise InvalidRequestError(problems)
    assert isinstance(model_id, str) and isinstance(seq, int)
    return model_id, seq


def digest(body: Mapping[str, Any]) -> str:
    told = {name: value for name, value in body.items() if name not in _OF_EACH_ATTEMPT}
    return sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def sentence(error: ServeError) -> str:
    """Return all problems of a refusal in one line."""
    if isinstance(error, InvalidRequestError):
        return "; ".join(f"{problem.path.removeprefix('body.')}: {problem.msg}" for problem in error.problems)
    return error.message


def submit(
    tinker: Tinker, caller: Caller, call: Ordered[C], kind: CallKind, options: Callable[[C], Mapping[str, Any]]
) -> Future:
    """Journal a call without a body. `options` returns its options, or raises a ServeError that refuses its content."""
    journal = partial(tinker.store.calls.submit, caller.entity, call.model_id, call.seq, kind, call.sha256, None)
    refusal = call.refusal
    if call.value is not None:
        try:
            request_id = journal(options=options(call.value), num_bytes=0)
            return Future(request_id=request_id, model_id=call.model_id)
        except (InvalidRequestError, NotFoundError) as error:
            if error.code in OF_THE_NUMBER:
                raise
            refusal = sentence(error)
    refuse = tinker.store.calls.submit_refused
    request_id = refuse(caller.entity, call.model_id, call.seq, kind, call.sha256, refusal)
    return Future(request_id=request_id, model_id=call.model_id)
