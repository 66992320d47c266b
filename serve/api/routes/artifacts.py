"""Routes of the files that training jobs and clients' runs leave for people, such as plots and stacks."""

from __future__ import annotations

import mimetypes
from uuid import UUID

from fastapi import APIRouter
from fastapi.responses import Response

from tandem.cluster.artifacts import job_artifact_key
from tandem.serve.api.auth import TrainCaller
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.wire.paging import Limit, Page
from tandem.serve.api.wire.responses import JobArtifact
from tandem.serve.errors import NotFoundError
from tandem.serve.names import quoted

router = APIRouter(prefix="/preview")


@router.get("/training-jobs/{training_job_id}/artifacts", tags=["training-jobs"])
def list_training_job_artifacts(
    training_job_id: UUID, caller: TrainCaller, services: ServicesDep, after: str | None = None, limit: Limit = 100
) -> Page[JobArtifact]:
    """List the files that a job wrote, by name: with `plot_tensors`, plots of its packed sequences."""
    return _page(services.store.jobs.get(str(training_job_id), caller.entity).id, services, after, limit)


@router.get("/training-jobs/{training_job_id}/artifacts/{name}", response_class=Response, tags=["training-jobs"])
def get_training_job_artifact(training_job_id: UUID, name: str, caller: TrainCaller, services: ServicesDep) -> Response:
    """Return the contents of one of the job's files."""
    job_id = services.store.jobs.get(str(training_job_id), caller.entity).id
    return _file(job_id, name, services, "Training job")


@router.get("/models/{model_id}/artifacts", tags=["models"])
def list_model_artifacts(
    model_id: UUID, caller: TrainCaller, services: ServicesDep, after: str | None = None, limit: Limit = 100
) -> Page[JobArtifact]:
    """List the files that runs of Tinker clients wrote for the model, by name: stacks of learners that stalled."""
    return _page(services.store.models.get(str(model_id), caller.entity).id, services, after, limit)


@router.get("/models/{model_id}/artifacts/{name}", response_class=Response, tags=["models"])
def get_model_artifact(model_id: UUID, name: str, caller: TrainCaller, services: ServicesDep) -> Response:
    """Return the contents of one of the model's files."""
    return _file(services.store.models.get(str(model_id), caller.entity).id, name, services, "Model")


def _page(owner: str, services: Services, after: str | None, limit: int) -> Page[JobArtifact]:
    sizes = services.artifacts.list_job_artifacts(owner)
    rest = [JobArtifact(id=name, size_bytes=size) for name, size in sizes.items() if after is None or name > after]
    return Page.of(rest, limit)


def _file(owner: str, name: str, services: Services, kind: str) -> Response:
    if name not in services.artifacts.list_job_artifacts(owner):  # so the name can't lead anywhere else
        raise NotFoundError(
            f"{kind} {owner} has no artifact {quoted(name)}. List its artifacts to see their names.",
            "artifact_not_found",
            "name",
        )
    content_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    content = services.artifacts.read_blob(job_artifact_key(owner, name))
    return Response(content, media_type=content_type, headers={"x-content-type-options": "nosniff"})
