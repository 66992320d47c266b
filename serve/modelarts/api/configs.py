"""Routes of saved configurations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, Query

from tandem.serve.api.bodies.json_body import Received, documented, json_body
from tandem.serve.modelarts.api.bodies import CreateConfig, UpdateConfig
from tandem.serve.modelarts.api.envelope import Success, envelope_router
from tandem.serve.modelarts.api.projects import ProjectDep
from tandem.serve.modelarts.api.responses import listed_config, whole_config
from tandem.serve.modelarts.errors import NOT_FOUND, RejectedError
from tandem.serve.modelarts.settings.run_settings import RunSettings
from tandem.serve.modelarts.store.configs import ConfigOrder

router = envelope_router()
ConfigType = Literal["custom", "sample"]


@router.post("/training-job-configs", **documented(CreateConfig))
def create_training_job_config(
    project: ProjectDep, body: Annotated[Received[CreateConfig], Depends(json_body(CreateConfig))]
) -> Success:
    """Save the settings of a training job under a name."""
    wanted = body.value
    project.store.configs.add(
        project.id, wanted.config_name, wanted.config_desc or "", project.check(_settings(wanted))
    )
    return Success()


@router.get("/training-job-configs")
def list_training_job_configs(
    project: ProjectDep,
    per_page: Annotated[int, Query(ge=1, le=1000)] = 10,
    page: Annotated[int, Query(ge=1, le=65535)] = 1,
    sort_by: Annotated[ConfigOrder, Query(alias="sortBy")] = "create_time",
    order: Literal["asc", "desc"] = "desc",
    search_content: Annotated[str | None, Query(max_length=64)] = None,
    config_type: ConfigType = "custom",
) -> dict[str, Any]:
    """List the project's saved configurations. The list of sample configurations is empty."""
    if config_type == "sample":
        return {"is_success": True, "config_total_count": 0, "configs": []}
    rows, total = project.store.configs.page(
        project.id, per_page, (page - 1) * per_page, sort_by, order == "desc", search_content
    )
    return {"is_success": True, "config_total_count": total, "configs": [listed_config(row) for row in rows]}


@router.get("/training-job-configs/{config_name}")
def get_training_job_config(
    project: ProjectDep, config_name: str, config_type: ConfigType = "custom"
) -> dict[str, Any]:
    """Return a saved configuration with all its settings."""
    if config_type == "sample":
        raise RejectedError(NOT_FOUND, f"This service has no sample configurations, so none is named {config_name!r}.")
    row = project.store.configs.get(project.id, config_name)
    return whole_config(row, project.spec(row.settings.get("spec_id")))


@router.put("/training-job-configs/{config_name}", **documented(UpdateConfig))
def update_training_job_config(
    project: ProjectDep, config_name: str, body: Annotated[Received[UpdateConfig], Depends(json_body(UpdateConfig))]
) -> Success:
    """Replace a saved configuration as a whole."""
    settings = project.check(_settings(body.value))
    project.store.configs.replace(project.id, config_name, body.value.config_desc or "", settings)
    return Success()


@router.delete("/training-job-configs/{config_name}")
def delete_training_job_config(project: ProjectDep, config_name: str) -> Success:
    """Delete a saved configuration. Jobs that used it keep their settings."""
    project.store.configs.delete(project.id, config_name)
    return Success()


def _settings(wanted: RunSettings) -> RunSettings:
    return RunSettings.model_validate(wanted.model_dump(include=set(RunSettings.model_fields)))
