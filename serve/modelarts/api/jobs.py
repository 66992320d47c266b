"""Routes of jobs and their versions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import Depends, Path, Query

from tandem.serve.api.bodies.json_body import Received, documented, json_body
from tandem.serve.modelarts.api.bodies import CreateJob, CreateVersion, UpdateJob
from tandem.serve.modelarts.api.envelope import Success, envelope_router
from tandem.serve.modelarts.api.projects import Project, ProjectDep
from tandem.serve.modelarts.api.responses import created_version, listed_job, listed_version, whole_version
from tandem.serve.modelarts.errors import FORBIDDEN, INVALID_REQUEST, RejectedError
from tandem.serve.modelarts.settings.run_settings import MAX_LONG
from tandem.serve.modelarts.store.jobs import JobOrder
from tandem.serve.modelarts.store.status import UserJobStatus
from tandem.serve.modelarts.store.tables import UserJobVersionRow

router = envelope_router()
JobId = Annotated[int, Path(ge=0, le=MAX_LONG)]
VersionId = Annotated[int, Path(ge=0, le=MAX_LONG)]
VERSION = "/training-jobs/{job_id}/versions/{version_id}"


@router.post("/training-jobs", **documented(CreateJob))
def create_training_job(
    project: ProjectDep, body: Annotated[Received[CreateJob], Depends(json_body(CreateJob))]
) -> dict[str, Any]:
    """Create a job and run its first version. After the response, the job survives any crash."""
    wanted = body.value
    if wanted.config.pre_version_id is not None:
        raise RejectedError(INVALID_REQUEST, "config.pre_version_id: leave it out; a new job has no previous version")
    if wanted.config.create_version is False:
        raise RejectedError(
            INVALID_REQUEST, "config.create_version: leave it out; a new job always gets its first version"
        )
    settings = project.check_runnable(wanted.config)
    desc, config = wanted.job_desc or "", wanted.config.config_name
    version = project.store.jobs.add(project.id, wanted.job_name, desc, settings, _max_open(project), config)
    return created_version(version, _resource_id(project, version))


@router.post("/training-jobs/{job_id}/versions", **documented(CreateVersion))
def create_training_job_version(
    project: ProjectDep, job_id: JobId, body: Annotated[Received[CreateVersion], Depends(json_body(CreateVersion))]
) -> dict[str, Any]:
    """Run a job again as a new version with its own settings."""
    wanted = body.value
    if wanted.config.create_version is False:
        raise RejectedError(INVALID_REQUEST, "config.create_version: leave it out; this call always creates a version")
    settings = project.check_runnable(wanted.config)
    version = project.store.jobs.add_version(
        project.id,
        job_id,
        wanted.job_desc,
        settings,
        wanted.config.pre_version_id,
        _max_open(project),
        wanted.config.config_name,
    )
    return created_version(version, _resource_id(project, version))


@router.get("/training-jobs")
def list_training_jobs(
    project: ProjectDep,
    status: Annotated[int | None, Query(ge=0, le=30)] = None,
    per_page: Annotated[int, Query(ge=1, le=1000)] = 10,
    page: Annotated[int, Query(ge=1, le=65535)] = 1,
    sort_by: Annotated[JobOrder, Query(alias="sortBy")] = "job_name",
    order: Literal["asc", "desc"] = "asc",
    search_content: Annotated[str | None, Query(max_length=64)] = None,
    workspace_id: Literal["0"] = "0",
    config_name: Annotated[str | None, Query(max_length=64)] = None,
) -> dict[str, Any]:
    """List the project's jobs, each with its newest version.

    `config_name`: only jobs whose newest version was started from this saved configuration.
    """
    rows, total = project.store.jobs.page(
        project.id, per_page, (page - 1) * per_page, sort_by, order == "desc", status, search_content, config_name
    )
    now = datetime.now(UTC)
    return {
        "is_success": True,
        "job_total_count": total,
        "job_count_limit": max(0, _max_open(project) - project.store.jobs.num_open(project.id)),
        "jobs": [listed_job(version, count, now) for version, count in rows],
    }


@router.put("/training-jobs/{job_id}", **documented(UpdateJob))
def update_training_job(
    project: ProjectDep, job_id: JobId, body: Annotated[Received[UpdateJob], Depends(json_body(UpdateJob))]
) -> Success:
    """Change a job's description."""
    project.store.jobs.describe(project.id, job_id, body.value.job_desc)
    return Success()


@router.delete("/training-jobs/{job_id}")
def delete_training_job(project: ProjectDep, job_id: JobId) -> Success:
    """Stop and delete all versions of a job."""
    project.store.jobs.delete(project.id, job_id)
    return Success()


@router.get("/training-jobs/{job_id}/versions")
def list_training_job_versions(
    project: ProjectDep,
    job_id: JobId,
    per_page: Annotated[int, Query(ge=1, le=1000)] = 10,
    page: Annotated[int, Query(ge=1, le=65535)] = 1,
) -> dict[str, Any]:
    """List the versions of a job, newest first."""
    rows = project.store.jobs.versions(project.id, job_id)
    now, job = datetime.now(UTC), rows[0].job
    specs = {spec.spec_id: spec for spec in project.specs()}
    shown = list(reversed(rows))[(page - 1) * per_page : page * per_page]
    return {
        "is_success": True,
        "job_id": job.id,
        "job_name": job.name,
        "job_desc": job.description,
        "version_count": len(rows),
        "versions": [listed_version(row, specs.get(row.settings["spec_id"]), now) for row in shown],
    }


@router.get(VERSION)
def get_training_job_version(project: ProjectDep, job_id: JobId, version_id: VersionId) -> dict[str, Any]:
    """Return a version with its settings."""
    row = project.store.jobs.version(project.id, job_id, version_id)
    return whole_version(row, project.spec(row.settings.get("spec_id")), datetime.now(UTC))


@router.post(f"{VERSION}/stop")
def stop_training_job_version(project: ProjectDep, job_id: JobId, version_id: VersionId) -> Success:
    """Stop a version. A version that has ended can't be stopped."""
    if not project.store.jobs.stop(project.id, job_id, version_id):
        status = UserJobStatus(project.store.jobs.version(project.id, job_id, version_id).status)
        raise RejectedError(FORBIDDEN, f"Version {version_id} has already ended ({status.name}) and can't be stopped.")
    return Success()


@router.delete(VERSION)
def delete_training_job_version(project: ProjectDep, job_id: JobId, version_id: VersionId) -> Success:
    """Stop and delete a version. The job is deleted with its last version."""
    project.store.jobs.delete_version(project.id, job_id, version_id)
    return Success()


def _max_open(project: Project) -> int:
    return project.config.limits.max_open_jobs_per_project


def _resource_id(project: Project, version: UserJobVersionRow) -> str:
    """Return the code of the resource specification that the version runs on."""
    spec = project.spec(version.settings["spec_id"])
    return spec.spec_code if spec else ""
