"""Responses made from rows. Times are epoch milliseconds; unset fields are null."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tandem.serve.modelarts.settings.engines import DEFAULT_ENGINE_ID, ENGINES
from tandem.serve.modelarts.settings.resource_specs import ResourceSpec
from tandem.serve.modelarts.settings.run_settings import RunSettings
from tandem.serve.modelarts.store.status import UserJobStatus
from tandem.serve.modelarts.store.tables import SavedConfigRow, UserJobVersionRow


def millis(time: datetime | None) -> int | None:
    return None if time is None else int(time.timestamp() * 1000)


def version_name(number: int) -> str:
    return f"V{number:04}"


def duration_ms(version: UserJobVersionRow, now: datetime) -> int:
    """Return how long the version has run, 0 before its start."""
    if version.started_at is None:
        return 0
    return int(((version.ended_at or now) - version.started_at).total_seconds() * 1000)


def engine_fields(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a boot file's engine, null for a built-in algorithm."""
    if settings.get("model_id") is not None:
        return dict.fromkeys(("engine_id", "engine_type", "engine_name", "engine_version"))
    engine = ENGINES[settings.get("engine_id") or DEFAULT_ENGINE_ID]
    return {
        "engine_id": engine.engine_id,
        "engine_type": engine.engine_type,
        "engine_name": engine.name,
        "engine_version": engine.version,
    }


def spec_fields(spec: ResourceSpec | None) -> dict[str, Any]:
    """Return the fields of a resource specification, null if the cluster no longer has it."""
    if spec is None:
        return dict.fromkeys(("spec_code", "core", "cpu", "gpu_num", "gpu_type"))
    return {
        "spec_code": spec.spec_code,
        "core": f"{spec.num_cpus:g}",
        "cpu": f"{spec.num_cpus:g}",
        "gpu_num": spec.num_gpus,
        "gpu_type": spec.gpu_type,
    }


def listed_config(row: SavedConfigRow) -> dict[str, Any]:
    return {
        "config_name": row.name,
        "config_desc": row.description,
        "create_time": millis(row.created_at),
        **engine_fields(row.settings),
        "user_image_url": None,
        "user_command": None,
    }


def whole_config(row: SavedConfigRow, spec: ResourceSpec | None) -> dict[str, Any]:
    return {
        "is_success": True,
        "config_name": row.name,
        "config_desc": row.description,
        "create_time": millis(row.created_at),
        **_settings(row.settings),
        **engine_fields(row.settings),
        **spec_fields(spec),
    }


def created_version(version: UserJobVersionRow, resource_id: str) -> dict[str, Any]:
    return {
        "is_success": True,
        "job_id": version.job_id,
        "job_name": version.job.name,
        "version_id": version.id,
        "version_name": version_name(version.number),
        "status": version.status,
        "create_time": millis(version.created_at),
        "resource_id": resource_id,
    }


def listed_job(version: UserJobVersionRow, version_count: int, now: datetime) -> dict[str, Any]:
    return {
        "job_id": version.job_id,
        "job_name": version.job.name,
        "job_desc": version.job.description,
        "version_id": version.id,
        "version_name": version_name(version.number),
        "status": version.status,
        "create_time": millis(version.job.created_at),
        "start_time": millis(version.started_at),
        "duration": duration_ms(version, now),
        "version_count": version_count,
        "config_name": version.config_name,
    }


def listed_version(version: UserJobVersionRow, spec: ResourceSpec | None, now: datetime) -> dict[str, Any]:
    return {
        "version_id": version.id,
        "version_name": version_name(version.number),
        "pre_version_id": version.pre_version_id,
        "status": version.status,
        "status_name": UserJobStatus(version.status).name,
        "error_message_of_job": version.error,
        "config_name": version.config_name,
        "create_time": millis(version.created_at),
        "start_time": millis(version.started_at),
        "duration": duration_ms(version, now),
        **_settings(version.settings),
        **engine_fields(version.settings),
        **spec_fields(spec),
    }


def whole_version(version: UserJobVersionRow, spec: ResourceSpec | None, now: datetime) -> dict[str, Any]:
    return {
        "is_success": True,
        "job_id": version.job_id,
        "job_name": version.job.name,
        "job_desc": version.job.description,
        **listed_version(version, spec, now),
    }


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return all settings, null if unset."""
    return {**dict.fromkeys(RunSettings.model_fields), **settings}
