"""Routes of a model's state: save it, publish it for sampling, load it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from tandem.rl.settings import LoraSettings
from tandem.serve.api.auth import Caller, TrainCaller
from tandem.serve.api.bodies.json_body import JsonText, documented, json_text, parse
from tandem.serve.errors import InvalidRequestError, Problem
from tandem.serve.names import quoted
from tandem.serve.tinker.api.base_models import flags_of
from tandem.serve.tinker.api.context import Tinker, TinkerDep
from tandem.serve.tinker.api.models import check_living, check_optimizer
from tandem.serve.tinker.api.submission import Ordered, ordered, ordered_body, submit
from tandem.serve.tinker.store.paths import call_request_id
from tandem.serve.tinker.store.runs import Start
from tandem.serve.tinker.store.saves import save_options
from tandem.serve.tinker.wire.requests import (
    LoadWeights,
    SaveWeights,
    SaveWeightsExternal,
    SaveWeightsForSampler,
)
from tandem.serve.tinker.wire.responses import Future

router = APIRouter(tags=["tinker"])


@router.post("/save_weights", **documented(SaveWeights))
def save_weights(
    caller: TrainCaller, call: Annotated[Ordered[SaveWeights], Depends(ordered_body(SaveWeights))], tinker: TinkerDep
) -> Future:
    """Save the model with its optimizer's state under a name."""
    return submit(tinker, caller, call, "save_weights", _saved)


def _saved(call: SaveWeights) -> dict[str, Any]:
    return save_options(call.path, call.ttl_seconds, call.user_metadata, call.overwrite)


@router.post("/save_weights_for_sampler", **documented(SaveWeightsForSampler))
def save_weights_for_sampler(
    caller: TrainCaller,
    call: Annotated[Ordered[SaveWeightsForSampler], Depends(ordered_body(SaveWeightsForSampler))],
    tinker: TinkerDep,
) -> Future:
    """Publish the model as its next version: under a name, or with a sampler of the session."""
    return submit(tinker, caller, call, "save_for_sampler", _published)


def _published(call: SaveWeightsForSampler) -> dict[str, Any]:
    if call.kind == "inflight":
        message = "inflight samplers, whose weights change during a generation, aren't served; use snapshot"
        raise InvalidRequestError([Problem(("body", "kind"), message)], "not_available")
    if (call.path is None) == (call.sampling_session_seq_id is None):
        message = "send either path, the checkpoint's name, or sampling_session_seq_id, for a sampler"
        raise InvalidRequestError([Problem(("body", "path"), message)])
    seq = call.sampling_session_seq_id
    return save_options(call.path, call.ttl_seconds, call.user_metadata, sampler_seq=seq)


@router.post("/save_weights_external", **documented(SaveWeightsExternal))
def save_weights_external(
    caller: TrainCaller,
    call: Annotated[Ordered[SaveWeightsExternal], Depends(ordered_body(SaveWeightsExternal))],
    tinker: TinkerDep,
) -> Future:
    """Save the model for download, in PEFT's files, under a name."""
    return submit(tinker, caller, call, "save_weights", _exported)


def _exported(call: SaveWeightsExternal) -> dict[str, Any]:
    if call.age_encryption_recipients is not None:
        message = "files aren't encrypted here; leave this out, and encrypt them after the download"
        raise InvalidRequestError([Problem(("body", "age_encryption_recipients"), message)], "not_available")
    return save_options(call.path, call.ttl_seconds, is_export=True)


@router.post("/load_weights", **documented(LoadWeights))
def load_weights(caller: TrainCaller, body: Annotated[JsonText, Depends(json_text)], tinker: TinkerDep) -> Future:
    """Create a model from a checkpoint, or load one into a model as its next call."""
    if body.value.get("model_id") is not None:
        call = ordered(LoadWeights, body)
        return submit(tinker, caller, call, "load_weights", _loaded)
    return _created(tinker, caller, parse(LoadWeights.model_validate_json, body.raw))


def _loaded(wanted: LoadWeights) -> dict[str, Any]:
    for name in ("session_id", "model_seq_id", "base_model", "optimizer_config", "user_metadata"):
        if getattr(wanted, name) is not None:
            problem = Problem(("body", name), "belongs to a new model; leave it out, or leave model_id and seq_id out")
            raise InvalidRequestError([problem])
    _check_token(wanted)
    return {"path": wanted.path, "optimizer": wanted.optimizer}


def _created(tinker: Tinker, caller: Caller, wanted: LoadWeights) -> Future:
    if wanted.session_id is None or wanted.model_seq_id is None:
        message = "is missing; send session_id and model_seq_id for a new model, or model_id and seq_id"
        raise InvalidRequestError([Problem(("body", "session_id"), message)])
    check_optimizer(wanted.optimizer_config)
    _check_token(wanted)
    check_living(tinker, caller, wanted.session_id)
    found = tinker.store.checkpoints.resolve(caller.entity, wanted.path)
    tinker.base_models.check_name(found.base_model, "path")
    if wanted.base_model not in (None, found.base_model):
        message = f"is {quoted(wanted.base_model or '')}, but the checkpoint is on {found.base_model}; leave it out"
        raise InvalidRequestError([Problem(("body", "base_model"), message)])
    base = tinker.services.config.base_model(found.base_model)
    lora = base.lora if found.lora is None else LoraSettings.model_validate(found.lora)
    run = tinker.store.runs.create(
        caller.entity,
        caller.key_id,
        session_id=wanted.session_id,
        model_seq_id=wanted.model_seq_id,
        base_model=found.base_model,
        lora=found.lora,
        initial_digest=found.initial_digest,
        flags=flags_of(lora),
        user_metadata=wanted.user_metadata,
        start=Start(wanted.path, wanted.optimizer),
    )
    return Future(request_id=call_request_id(run.id, 0), model_id=run.id)


def _check_token(wanted: LoadWeights) -> None:
    if wanted.weights_access_token is not None:
        message = "isn't served: have the owner publish the checkpoint (RestClient.publish_checkpoint_from_tinker_path)"
        raise InvalidRequestError([Problem(("body", "weights_access_token"), message)], "not_available")
