"""The model of a fine-tuning job: where it starts, and its name."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from tandem.serve.errors import BadRequestError, NotFoundError, Problem
from tandem.serve.names import quoted
from tandem.serve.store.store import Store

PROJECT = "fine-tuning"
"""The project of the models that fine-tuning jobs make."""
_NAME = re.compile(r"([\w.-]+)/([\w.-]+)/([\w.-]+)(?::step(0|[1-9][0-9]{0,8}))?")


@dataclass(frozen=True)
class Start:
    """A version of a model of the entity, from which a job starts; without `step`, the newest."""

    project: str
    name: str
    step: int | None


def parse_start(base_models: Collection[str], entity: str, model: str) -> Start | None:
    """Return the version that `model` names, None for a base model. Raises BadRequestError."""
    if model in base_models:
        return None
    parts = _NAME.fullmatch(model)
    if parts is None or parts[1] != entity:
        raise _unknown(
            f"there is no model {quoted(model)}; name a base model ({', '.join(sorted(base_models))}), or a model of "
            "this key's entity as entity/project/name or entity/project/name:stepN"
        )
    return Start(parts[2], parts[3], None if parts[4] is None else int(parts[4]))


@dataclass(frozen=True)
class Origin:
    """Where a job's model starts: on a base model, perhaps from a version of another model."""

    base_model: str
    model_id: str | None = None
    step: int | None = None


def find_origin(store: Store, base_models: Collection[str], entity: str, model: str) -> Origin:
    """Return what `model` names now. Raises BadRequestError."""
    start = parse_start(base_models, entity, model)
    if start is None:
        return Origin(model)
    try:
        version = store.versions.resolve(entity, start.project, start.name, start.step)
        row = store.lineage.find_source(entity, f"{start.project}/{start.name}")
    except NotFoundError as error:
        raise _unknown(error.message) from None
    return Origin(version.base_model, row.id, version.step)


def new_name(base_model: str, suffix: str | None, job_id: str) -> str:
    """Return the name of a job's model: its suffix, or the base model's name, and the beginning of the job's id."""
    slug = re.sub(r"[^\w.-]+", "-", suffix or base_model.rpartition("/")[2]).strip("-.")
    return f"{slug[:100] or 'model'}-{job_id.removeprefix('ftjob-')[:8]}"


def _unknown(reason: str) -> BadRequestError:
    return BadRequestError([Problem(("body", "model"), reason)], "model_not_found")
