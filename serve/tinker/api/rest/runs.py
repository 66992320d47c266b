"""Routes of training runs: those of clients, and models that jobs train, which are listed as runs."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from tandem.serve.adapters.importing import lora_of_model
from tandem.serve.api.auth import InferCaller
from tandem.serve.tinker.api.context import Tinker, TinkerDep
from tandem.serve.tinker.api.rest.views import checkpoint_view, text_values
from tandem.serve.tinker.store.catalog import ListedRun
from tandem.serve.tinker.wire.rest import Checkpoints, Cursor, TrainingRun, TrainingRuns

router = APIRouter(tags=["tinker"])
Limit = Annotated[int, Query(ge=0, le=1000)]
Offset = Annotated[int, Query(ge=0, le=2**31 - 1)]
Scope = Literal["owned", "accessible"]
"""Both mean everything of the key's entity."""


@router.get("/training_runs")
def list_training_runs(
    caller: InferCaller,
    tinker: TinkerDep,
    limit: Limit = 20,
    offset: Offset = 0,
    access_scope: Scope = "owned",
    project_id: str | None = None,
) -> TrainingRuns:
    """List the entity's runs and models, the newest first. `project_id`: those of one project."""
    found, total = tinker.catalog.runs(caller.entity, limit, offset, project_id)
    cursor = Cursor(offset=offset, limit=limit, total_count=total)
    return TrainingRuns(training_runs=[_view(tinker, run) for run in found], cursor=cursor)


@router.get("/training_runs/{run_id}")
def get_training_run(run_id: str, caller: InferCaller, tinker: TinkerDep, access_scope: Scope = "owned") -> TrainingRun:
    """Return a run, by its id or that of its model, or a model."""
    return _view(tinker, tinker.catalog.run(caller.entity, run_id))


@router.get("/training_runs/{run_id}/checkpoints")
def list_checkpoints_of_run(run_id: str, caller: InferCaller, tinker: TinkerDep) -> Checkpoints:
    """List the checkpoints of a run, or the versions of a model, the newest first."""
    found = tinker.catalog.checkpoints_of(caller.entity, run_id)
    return Checkpoints(checkpoints=[checkpoint_view(one) for one in found])


@router.get("/checkpoints")
def list_checkpoints(caller: InferCaller, tinker: TinkerDep, limit: Limit = 100, offset: Offset = 0) -> Checkpoints:
    """List the checkpoints of all of the entity's runs and models, the newest first."""
    found, total = tinker.catalog.checkpoints(caller.entity, limit, offset)
    cursor = Cursor(offset=offset, limit=limit, total_count=total)
    return Checkpoints(checkpoints=[checkpoint_view(one) for one in found], cursor=cursor)


def _view(tinker: Tinker, found: ListedRun) -> TrainingRun:
    model, config = found.model, tinker.services.config
    is_known = model.lora is not None or model.base_model in tinker.services.base_models
    training, sampler = found.newest.get("weights"), found.newest.get("sampler_weights")
    return TrainingRun(
        training_run_id=found.id,
        base_model=model.base_model,
        model_owner=model.entity,
        lora_rank=lora_of_model(model, config).r if is_known else None,
        last_request_time=found.last_used_at,
        last_checkpoint=training and checkpoint_view(training),
        last_sampler_checkpoint=sampler and checkpoint_view(sampler),
        user_metadata=text_values(found.run.user_metadata) if found.run else None,
    )
