"""Routes of checkpoints: what they hold, who may read them, how long they stay."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from tandem.rl.settings import LoraSettings
from tandem.serve.api.auth import InferCaller, TrainCaller
from tandem.serve.api.bodies.json_body import Received, documented, json_body
from tandem.serve.errors import BadRequestError, Problem
from tandem.serve.names import quoted
from tandem.serve.tinker.api.base_models import flags_of
from tandem.serve.tinker.api.context import Tinker, TinkerDep
from tandem.serve.tinker.api.rest.views import TYPES
from tandem.serve.tinker.store.checkpoints import Checkpoint
from tandem.serve.tinker.store.copies import Destination
from tandem.serve.tinker.wire.rest import AskWeights, CopyWeights, SetTtl, WeightsCopied, WeightsInfo

router = APIRouter(tags=["tinker"])
OF_RUN = "/training_runs/{run_id}/checkpoints/{checkpoint_id:path}"
NO_CONTENT: dict[str, Any] = {"status_code": 204, "response_class": Response}


def path_of(run_id: str, checkpoint_id: str) -> str:
    """Return the path of a checkpoint of a run. Raises BadRequestError for an id that can't be one."""
    kind, _, name = checkpoint_id.partition("/")
    if kind not in TYPES or not name or "/" in name:
        message = f"{quoted(checkpoint_id)} is no checkpoint's id: send KIND/NAME, with KIND one of {', '.join(TYPES)}"
        raise BadRequestError([Problem(("path", "checkpoint_id"), message)], "invalid_checkpoint_id")
    return f"tinker://{run_id}/{kind}/{name}"


@router.post("/weights_info", **documented(AskWeights))
def weights_info(
    caller: InferCaller, body: Annotated[Received[AskWeights], Depends(json_body(AskWeights))], tinker: TinkerDep
) -> WeightsInfo:
    """Return what a new run needs to know to continue from a checkpoint."""
    found = tinker.store.checkpoints.resolve(caller.entity, body.value.tinker_path, "tinker_path")
    lora = lora_of(tinker, found)
    flags = flags_of(lora)
    return WeightsInfo(
        base_model=found.base_model,
        lora_rank=lora.r,
        train_mlp=bool(flags["train_mlp"]),
        train_attn=bool(flags["train_attn"]),
    )


@router.post("/copy_weights", **documented(CopyWeights))
def copy_weights(
    request: Request,
    caller: TrainCaller,
    body: Annotated[Received[CopyWeights], Depends(json_body(CopyWeights))],
    tinker: TinkerDep,
) -> WeightsCopied:
    """Give a checkpoint, the entity's own or a public one, a second path that stays when the first is deleted.

    The copy belongs to a run that takes no calls. No file is copied.
    """
    wanted = body.value
    if wanted.weights_access_token is not None:
        message = "isn't known here; have the other entity publish the checkpoint, and leave this out"
        raise BadRequestError([Problem(("body", "weights_access_token"), message)], "not_available")
    if (wanted.session_id is None) != (wanted.model_seq_id is None) or (
        (wanted.session_id is None) == (wanted.destination_project_id is None)
    ):
        message = "send either destination_project_id, or session_id and model_seq_id"
        raise BadRequestError([Problem(("body", "destination_project_id"), message)])
    destination = Destination(wanted.session_id, wanted.model_seq_id or 0, wanted.destination_project_id)
    key = request.headers.get("x-idempotency-key")
    path = tinker.copies.add(caller.entity, caller.key_id, wanted.source_path, destination, wanted.ttl_seconds, key)
    return WeightsCopied(tinker_path=path)


@router.put(f"{OF_RUN}/ttl", **NO_CONTENT, **documented(SetTtl))
def set_ttl(
    run_id: str,
    checkpoint_id: str,
    caller: TrainCaller,
    body: Annotated[Received[SetTtl], Depends(json_body(SetTtl))],
    tinker: TinkerDep,
) -> None:
    """Let a checkpoint of a run expire, or stay."""
    tinker.store.checkpoints.set_ttl(caller.entity, _own(run_id, checkpoint_id), body.value.ttl_seconds)


@router.post(f"{OF_RUN}/publish", **NO_CONTENT)
def publish(run_id: str, checkpoint_id: str, caller: TrainCaller, tinker: TinkerDep) -> None:
    """Let keys of other entities that know a checkpoint's path load it and sample from it. A repeat changes nothing."""
    tinker.store.checkpoints.publish(caller.entity, _own(run_id, checkpoint_id))


@router.delete(f"{OF_RUN}/publish", **NO_CONTENT)
def unpublish(run_id: str, checkpoint_id: str, caller: TrainCaller, tinker: TinkerDep) -> None:
    """End that. Runs and samplers that were created from the checkpoint stay. A repeat changes nothing."""
    tinker.store.checkpoints.publish(caller.entity, _own(run_id, checkpoint_id), is_public=False)


# After those whose paths are longer: an id may have a slash.
@router.delete(OF_RUN, **NO_CONTENT)
def delete_checkpoint(run_id: str, checkpoint_id: str, caller: TrainCaller, tinker: TinkerDep) -> None:
    """Delete a checkpoint of a run. What was created from it stays."""
    tinker.store.checkpoints.delete(caller.entity, _own(run_id, checkpoint_id))


def lora_of(tinker: Tinker, checkpoint: Checkpoint) -> LoraSettings:
    """Return the LoRA settings of a checkpoint. Raises InvalidRequestError if its base model isn't served any more."""
    if checkpoint.lora is not None:
        return LoraSettings.model_validate(checkpoint.lora)
    tinker.base_models.check_name(checkpoint.base_model, "tinker_path")
    return tinker.services.config.base_model(checkpoint.base_model).lora


def _own(run_id: str, checkpoint_id: str) -> str:
    """Return the path of a run's checkpoint, which can be changed. Raises BadRequestError."""
    path = path_of(run_id, checkpoint_id)
    if ":" not in run_id:
        message = (
            f"{quoted(run_id)} is no run of a client. Versions of other models are kept and deleted at "
            "/v1/preview/models/MODEL_ID/checkpoints, and belong to their entity alone"
        )
        raise BadRequestError([Problem(("path", "training_run_id"), message)], "not_a_run")
    return path
