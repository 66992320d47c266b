"""Routes of models: register, list, delete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends
from pydantic import ValidationError

from tandem.cluster.config import BaseModelConfig
from tandem.rl.settings import LoraSettings
from tandem.serve.adapters.importing import lora_of_model
from tandem.serve.api.auth import InferCaller, TrainCaller
from tandem.serve.api.bodies.json_body import Received, documented, json_body
from tandem.serve.api.bodies.problems import problems_of
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.wire.paging import Limit, Order, Page
from tandem.serve.api.wire.requests import CreateModel, ForkFrom, ModelLora, Name
from tandem.serve.api.wire.responses import Model, ModelDeleted
from tandem.serve.api.wire.views import model_view
from tandem.serve.errors import ConflictError, ForbiddenError, InvalidRequestError, Problem
from tandem.serve.jobs.blobs import delete_blobs, delete_job_artifacts, delete_traces
from tandem.serve.jobs.sweeping import remove_unused_checkpoints
from tandem.serve.names import quoted
from tandem.serve.store.policies.lineage import ForkSource
from tandem.serve.store.policies.models import OwnLora
from tandem.serve.store.tables.training import ModelRow

router = APIRouter(prefix="/preview/models", tags=["models"])


@router.post("", **documented(CreateModel))
def create_model(
    caller: TrainCaller, body: Annotated[Received[CreateModel], Depends(json_body(CreateModel))], services: ServicesDep
) -> Model:
    """Register a model, or return the existing one of that name if `return_existing` is set."""
    wanted = body.value
    entity = wanted.entity or caller.entity
    if entity != caller.entity:
        raise ForbiddenError(
            f"This key belongs to entity {caller.entity!r} and can't register models of {entity!r}. "
            "Leave entity out, or use a key of that entity.",
            "wrong_entity",
            "entity",
        )
    if wanted.base_model not in services.base_models:
        available = ", ".join(sorted(services.base_models))
        message = f"there is no base model {quoted(wanted.base_model)} here; this service has: {available}"
        raise InvalidRequestError([Problem(("body", "base_model"), message)], "base_model_not_found")
    row = _fork(services, entity, wanted, wanted.from_) if wanted.from_ else _add(services, entity, wanted)
    services.preparation.warm_up(wanted.base_model)  # its first job follows as soon as there are samples
    return _with_steps(services, [row])[0]


def _add(services: Services, entity: str, wanted: CreateModel) -> ModelRow:
    base, settings, own_lora = services.config.base_model(wanted.base_model), None, None
    if wanted.lora is not None:
        settings = _settings(base, wanted.lora)
        base.check_lora(settings)
    if settings is not None and settings != base.lora:
        digest = services.preparation.initial_version(base.name, settings)
        own_lora = OwnLora(settings.model_dump(mode="json"), digest)
    row = services.store.models.add(
        entity, wanted.project, wanted.name, wanted.base_model, wanted.return_existing, own_lora
    )
    found = lora_of_model(row, services.config)
    if settings is not None and not (found.fits(settings) and found.seed == settings.seed):
        raise ConflictError(
            f"Model {row.path} already exists, with {found}, seed {found.seed}. Choose another name, leave lora out to "
            "get it, or delete that model first.",
            "model_exists",
            "lora",
        )
    return row


def _settings(base: BaseModelConfig, asked: ModelLora) -> LoraSettings:
    """Return the settings of a model: those that it asks for, the others as the base model has them."""
    try:
        return LoraSettings.model_validate(base.lora.model_dump() | asked.model_dump(exclude_none=True))
    except ValidationError as error:
        raise InvalidRequestError(problems_of(error.errors(include_url=False), ("body", "lora"))) from None


def _fork(services: Services, entity: str, wanted: CreateModel, source: ForkFrom) -> ModelRow:
    if wanted.lora is not None:
        message = "can't be given with from: a fork has the LoRA settings of the model that it comes from"
        raise InvalidRequestError([Problem(("body", "lora"), message)])
    named = services.store.lineage.find_source(entity, source.model)
    return services.store.lineage.fork(
        entity,
        wanted.project,
        wanted.name,
        wanted.base_model,
        ForkSource(named.id, source.step, source.optimizer),
        wanted.return_existing,
    )


@router.get("")
def list_models(
    caller: InferCaller,
    services: ServicesDep,
    after: UUID | None = None,
    limit: Limit = 20,
    order: Order = "asc",
    project: Name | None = None,
    name: Name | None = None,
) -> Page[Model]:
    """List the entity's models by time of registration."""
    rows = services.store.models.page(
        caller.entity,
        limit + 1,
        after=str(after) if after else None,
        newest_first=order == "desc",
        project=project,
        name=name,
    )
    return Page.of(_with_steps(services, rows), limit)


@router.get("/{model_id}")
def get_model(model_id: UUID, caller: InferCaller, services: ServicesDep) -> Model:
    """Return a model."""
    return _with_steps(services, [services.store.models.get(str(model_id), caller.entity)])[0]


@router.delete("/{model_id}")
def delete_model(model_id: UUID, caller: TrainCaller, services: ServicesDep) -> ModelDeleted:
    """Delete a model with its checkpoints, its logs and the files of its jobs. Open jobs end with training_failed."""
    deleted = services.store.models.delete(str(model_id), caller.entity)
    delete_blobs(services.artifacts, deleted.blob_keys)
    delete_job_artifacts(services.artifacts, (*deleted.job_ids, str(model_id)))  # calls of a client, too, leave some
    delete_traces(services.artifacts, deleted.job_ids)
    remove_unused_checkpoints(services.store, services.artifacts)
    return ModelDeleted(model_id=str(model_id), deleted_checkpoints=deleted.num_checkpoints)


def _with_steps(services: Services, rows: Sequence[ModelRow]) -> list[Model]:
    ids = [row.id for row in rows]
    steps, imported = services.store.versions.newest_steps(ids), services.store.versions.imported_steps(ids)
    runs = services.store.models.client_runs(ids)
    return [
        model_view(row, steps.get(row.id, 0), _lora_of(services, row), imported.get(row.id), runs.get(row.id))
        for row in rows
    ]


def _lora_of(services: Services, row: ModelRow) -> LoraSettings | None:
    return lora_of_model(row, services.config) if row.lora or row.base_model in services.base_models else None
