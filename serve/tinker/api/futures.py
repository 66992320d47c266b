"""Routes of results. A request for one that isn't there yet is held until it is, or for `tinker.hold_s`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from tandem.serve.api.auth import Caller, InferCaller
from tandem.serve.api.bodies.json_body import Received, documented, json_body
from tandem.serve.api.connection import while_connected
from tandem.serve.api.quick_reads import read_quickly
from tandem.serve.api.request_ids import request_id
from tandem.serve.errors import InvalidRequestError, Problem
from tandem.serve.tinker.api.context import Tinker, TinkerDep
from tandem.serve.tinker.api.outcome_answers import most_bytes, outcome_answer
from tandem.serve.tinker.sampling.sample_ids import PREFIX as SAMPLE
from tandem.serve.tinker.store.outcomes import Outcome
from tandem.serve.tinker.store.paths import parse_request_id
from tandem.serve.tinker.wire.requests import AnyFields, CancelFuture, RetrieveFuture
from tandem.serve.tinker.wire.responses import Cancelled

RECHECK_S = 5.0
"""How often a waiting request looks itself: a call that failed before its turn came isn't noticed otherwise."""
router = APIRouter(tags=["tinker"])


@router.post("/retrieve_future", **documented(RetrieveFuture))
async def retrieve_future(
    request: Request,
    caller: InferCaller,
    body: Annotated[Received[RetrieveFuture], Depends(json_body(RetrieveFuture))],
    tinker: TinkerDep,
) -> Response:
    """Return the result of a call: JSON or protobuf, or its error with a category, both with status 200.

    408 with what the call waits for if it hasn't ended in time; 410 if its result isn't kept any more.
    """
    wanted = body.value
    if wanted.request_id.startswith(SAMPLE):
        max_bytes = most_bytes(wanted.allow_metadata_only)
        waiting = tinker.sampling.outcome(caller, wanted.request_id, request_id(request.scope), max_bytes)
    else:
        waiting = _outcome(tinker, caller, wanted.request_id)
    outcome = await while_connected(request, waiting)
    return outcome_answer(outcome, wanted.request_id, wanted.allow_metadata_only, request.headers.get("accept", ""))


async def _outcome(tinker: Tinker, caller: Caller, id: str) -> Outcome:
    """Return the outcome of a call, after waiting for it. Raises NotFoundError or GoneError."""
    now, calls = asyncio.get_running_loop().time, tinker.store.calls
    deadline = now() + tinker.config.hold_s
    while True:
        found = await read_quickly(tinker.services.store, calls.poll, id, caller.entity)
        remaining = deadline - now()
        if found is not None:
            return found
        if remaining <= 0:
            return await run_in_threadpool(calls.outcome, id, caller.entity)
        run_id, seq = parse_request_id(id)
        await tinker.results.wait(run_id, seq or 0, min(RECHECK_S, remaining))


@router.post("/cancel_future", **documented(CancelFuture))
async def cancel_future(
    request: Request,
    caller: InferCaller,
    body: Annotated[Received[CancelFuture], Depends(json_body(CancelFuture))],
    tinker: TinkerDep,
) -> Cancelled:
    """Stop a sample that nobody waits for. Calls of training can't be cancelled: later ones depend on them."""
    if body.value.request_id.startswith(SAMPLE):
        await tinker.sampling.cancel(caller, body.value.request_id, request_id(request.scope))
        return Cancelled(request_id=body.value.request_id)
    await run_in_threadpool(tinker.store.calls.outcome, body.value.request_id, caller.entity)
    message = "names a call of training, which can't be cancelled: later ones depend on it"
    raise InvalidRequestError([Problem(("body", "request_id"), message)], "not_available")


@router.post("/retrieve_futures", **documented(AnyFields))
def retrieve_futures(caller: InferCaller) -> dict[str, Any]:
    """Refuse: results are retrieved one by one here, as client/config says."""
    message = "isn't served; ask retrieve_future for each result (client/config says sample_use_retrieve_futures false)"
    raise InvalidRequestError([Problem(("body", "target"), message)], "not_available")
