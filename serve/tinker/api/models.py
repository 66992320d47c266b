"""Routes of models: create, describe, unload."""

from __future__ import annotations

from hashlib import sha256
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from tandem.rl.errors import LoraLimitError
from tandem.rl.settings import LoraSettings
from tandem.serve.adapters.importing import lora_of_model
from tandem.serve.api.auth import Caller, TrainCaller
from tandem.serve.api.bodies.json_body import Received, documented, json_body
from tandem.serve.errors import GoneError, InvalidRequestError, NotFoundError, Problem
from tandem.serve.jobs.blobs import delete_blobs
from tandem.serve.tinker.api.base_models import flags_of
from tandem.serve.tinker.api.context import Tinker, TinkerDep
from tandem.serve.tinker.api.rest.tokenizers import tokenizer_id
from tandem.serve.tinker.store.paths import call_request_id, run_id, unload_request_id
from tandem.serve.tinker.store.runs import not_served
from tandem.serve.tinker.wire.requests import CreateRun, GetInfo, OptimizerConfig, UnloadModel
from tandem.serve.tinker.wire.responses import Future, ModelData, ModelInfo

router = APIRouter(tags=["tinker"])


@router.post("/create_model", **documented(CreateRun))
def create_model(
    caller: TrainCaller, body: Annotated[Received[CreateRun], Depends(json_body(CreateRun))], tinker: TinkerDep
) -> Future:
    """Create a model that the session trains. It also is a model of Tandem, in the project `tinker.project`.

    A repeat with the same session_id and model_seq_id returns the same model.
    """
    wanted = body.value
    tinker.base_models.check_name(wanted.base_model)
    check_optimizer(wanted.optimizer_config)
    check_living(tinker, caller, wanted.session_id)
    lora = _lora(tinker, wanted)
    run = tinker.store.runs.create(
        caller.entity,
        caller.key_id,
        session_id=wanted.session_id,
        model_seq_id=wanted.model_seq_id,
        base_model=wanted.base_model,
        lora=lora.model_dump(mode="json"),
        initial_digest=tinker.services.preparation.initial_version(wanted.base_model, lora),
        flags=flags_of(lora),
        user_metadata=wanted.user_metadata,
    )
    return Future(request_id=call_request_id(run.id, 0), model_id=run.id)


def check_optimizer(wanted: OptimizerConfig | None) -> None:
    """Raise InvalidRequestError for another optimizer than AdamW."""
    if wanted is not None and wanted.type != "adamw":
        problem = Problem(("body", "optimizer_config", "type"), "only adamw is served; leave optimizer out")
        raise InvalidRequestError([problem], "optimizer_not_served")


def check_living(tinker: Tinker, caller: Caller, session_id: str) -> None:
    """Raise NotFoundError without the session, GoneError if it has finished."""
    session = tinker.store.sessions.get(caller.entity, session_id)
    if session.finished_at is not None:
        message = f"Session {session_id} has finished. Create a new ServiceClient."
        raise GoneError(message, "session_finished", "session_id")


def _lora(tinker: Tinker, wanted: CreateRun) -> LoraSettings:
    """Return the model's LoRA settings. Raises InvalidRequestError."""
    asked = wanted.lora_config
    modules = tinker.base_models.lora_modules(wanted.base_model, asked.train_attn, asked.train_mlp)
    if not modules:
        message = (
            "asks for no layer that can be adapted here: set train_attn or train_mlp (the output layer isn't adapted)"
        )
        raise InvalidRequestError([Problem(("body", "lora_config"), message)], "lora_not_allowed")
    seed = _seed(run_id(wanted.session_id, wanted.model_seq_id)) if asked.seed is None else asked.seed
    lora = LoraSettings(r=asked.rank, alpha=tinker.config.lora_alpha, target_modules=modules, seed=seed)
    try:
        tinker.base_models.check_lora(wanted.base_model, lora)
    except LoraLimitError as error:
        field = {"r": "rank"}.get(error.field, error.field)
        raise InvalidRequestError([Problem(("body", "lora_config", field), error.reason)], "lora_not_allowed") from None
    return lora


def _seed(id: str) -> int:
    """Return a seed that no other model has, and that a repeated request gets again."""
    return int.from_bytes(sha256(id.encode()).digest()[:7], "big")


@router.post("/get_info", response_model_exclude_none=True, **documented(GetInfo))
def get_info(
    request: Request,
    caller: TrainCaller,
    body: Annotated[Received[GetInfo], Depends(json_body(GetInfo))],
    tinker: TinkerDep,
) -> ModelInfo:
    """Describe a model: base model, tokenizer and rank."""
    run, model = tinker.store.runs.with_model(caller.entity, body.value.model_id)
    if run.base_model not in tinker.services.base_models:
        raise NotFoundError(not_served(run.base_model), "base_model_not_found", "model_id")
    tokenizer = tokenizer_id(request, tinker.services.config, run.base_model)
    return ModelInfo(
        model_data=ModelData(model_name=run.base_model, tokenizer_id=tokenizer),
        model_id=run.id,
        lora_rank=lora_of_model(model, tinker.services.config).r,
        model_name=run.base_model,
    )


@router.post("/unload_model", **documented(UnloadModel))
def unload_model(
    caller: TrainCaller, body: Annotated[Received[UnloadModel], Depends(json_body(UnloadModel))], tinker: TinkerDep
) -> Future:
    """End the training of a model. Its checkpoints and versions stay, and training jobs may continue from them."""
    model_id = body.value.model_id
    delete_blobs(tinker.services.artifacts, tinker.store.runs.unload(caller.entity, model_id))
    return Future(request_id=unload_request_id(model_id), model_id=model_id)
