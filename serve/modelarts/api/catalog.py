"""Routes that list resource specifications, engines and built-in algorithms."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query

from tandem.serve.modelarts.api.envelope import envelope_router
from tandem.serve.modelarts.api.projects import ProjectDep
from tandem.serve.modelarts.api.responses import spec_fields
from tandem.serve.modelarts.settings.algorithm_parameters import listed_parameters
from tandem.serve.modelarts.settings.algorithms import ALGORITHMS
from tandem.serve.modelarts.settings.engines import DEFAULT_ENGINE_ID, ENGINES

router = envelope_router()
JobType = Literal["train"]


@router.get("/job/resource-specs")
def list_resource_specs(
    project: ProjectDep, job_type: JobType = "train", engine_id: Annotated[int | None, Query(ge=0)] = None
) -> dict[str, Any]:
    """List the resource specifications of workers. Every engine runs on each of them."""
    specs = project.specs() if engine_id is None or engine_id in ENGINES else []
    return {
        "is_success": True,
        "spec_total_count": len(specs),
        "specs": [
            {
                "spec_id": spec.spec_id,
                **spec_fields(spec),
                "max_num": spec.max_num,
                "unit_num": 1,
                "storage": None,
                "interface_type": 1,
                "no_resource": not spec.has_room,
            }
            for spec in specs
        ],
    }


@router.get("/job/ai-engines")
def list_ai_engines(project: ProjectDep, job_type: JobType = "train") -> dict[str, Any]:
    """List the engines that run boot files, in their installed versions."""
    return {
        "is_success": True,
        "engines": [
            {
                "engine_type": engine.engine_type,
                "engine_id": engine.engine_id,
                "engine_name": engine.name,
                "engine_version": engine.version,
            }
            for engine in ENGINES.values()
        ],
    }


@router.get("/built-in-algorithms")
def list_built_in_algorithms(
    project: ProjectDep,
    per_page: Annotated[int, Query(ge=1, le=100)] = 10,
    page: Annotated[int, Query(ge=1, le=65535)] = 1,
    sort_by: Annotated[Literal["model_id", "model_name", "create_time"], Query(alias="sortBy")] = "create_time",
    order: Literal["asc", "desc"] = "desc",
    search_content: Annotated[str | None, Query(max_length=64)] = None,
) -> dict[str, Any]:
    """List the algorithms, which need data and parameters but no code. `parameter` is JSON text."""
    engine = ENGINES[DEFAULT_ENGINE_ID]
    found = [a for a in ALGORITHMS.values() if (search_content or "").lower() in a.name.lower()]
    found.sort(key=lambda a: a.name if sort_by == "model_name" else a.model_id, reverse=order == "desc")
    return {
        "is_success": True,
        "model_total_count": len(found),
        "models": [
            {
                "model_id": algorithm.model_id,
                "model_name": algorithm.name,
                "model_usage": algorithm.usage,
                "parameter": listed_parameters(),
                "engine_id": engine.engine_id,
                "engine_name": engine.name,
                "engine_version": engine.version,
            }
            for algorithm in found[(page - 1) * per_page : page * per_page]
        ],
    }
