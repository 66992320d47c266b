"""Routes of training: forward_backward, forward, optim_step."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from tandem.serve.api.auth import TrainCaller
from tandem.serve.api.bodies.json_body import documented
from tandem.serve.errors import InvalidRequestError, Problem
from tandem.serve.tinker.api.context import TinkerDep
from tandem.serve.tinker.api.datum_bodies import DatumBody, datum_body, forward_body, journal, shown
from tandem.serve.tinker.api.submission import Ordered, ordered_body, submit
from tandem.serve.tinker.wire.requests import AnyFields, OptimStep
from tandem.serve.tinker.wire.responses import Future

router = APIRouter(tags=["tinker"])


@router.post("/forward_backward", **shown())
def forward_backward(caller: TrainCaller, body: Annotated[DatumBody, Depends(datum_body)], tinker: TinkerDep) -> Future:
    """Compute the losses and logprobs of datums, and add the gradient to the model's, as its next call.

    The body is protobuf, optionally compressed, or JSON as older SDKs send it.
    """
    return journal(tinker, caller, body)


@router.post("/forward", **shown())
def forward(caller: TrainCaller, body: Annotated[DatumBody, Depends(forward_body)], tinker: TinkerDep) -> Future:
    """Compute losses and logprobs without a gradient, as older SDKs ask for it."""
    return journal(tinker, caller, body)


@router.post("/optim_step", **documented(OptimStep))
def optim_step(
    caller: TrainCaller, call: Annotated[Ordered[OptimStep], Depends(ordered_body(OptimStep))], tinker: TinkerDep
) -> Future:
    """Take a step of AdamW with the accumulated gradient, and clear it."""
    return submit(tinker, caller, call, "optim_step", _step)


def _step(call: OptimStep) -> dict[str, Any]:
    if call.optimizer_params is not None:
        raise InvalidRequestError([Problem(("body", "optimizer_params"), "only AdamW is served; send adam_params")])
    return call.adam_params.model_dump()


@router.post("/create_custom_loss", **documented(AnyFields))
def create_custom_loss(caller: TrainCaller) -> Future:
    """Refuse: the SDK computes custom losses itself, with one more forward pass."""
    advice = (
        "losses aren't run by the service; pass the function itself to forward_backward_custom, which differentiates "
        "it in your process"
    )
    raise InvalidRequestError([Problem(("body", "graph"), advice)], "not_available")
