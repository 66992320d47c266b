"""KL references: a version is found and pinned when a job is accepted or claimed, and kept until the job ends."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from tandem.rl.errors import ConfigError
from tandem.serve.store.policies.models import find_by_name
from tandem.serve.store.policies.versions import fate, find_retired, find_version, initial_digest, not_ready
from tandem.serve.store.tables.training import JobRow, ModelRow, VersionRow, is_open


@dataclass(frozen=True)
class Step:
    """A version by its step."""

    step: int
    path: tuple[str, str, str] | None = None
    """Entity, project and name of its model; None for the job's own model."""


@dataclass(frozen=True)
class Lag:
    """The version that lies this many versions before the job's start, which is known when the job is claimed."""

    num_versions: int


@dataclass(frozen=True)
class Checkpoint:
    """A version by the digest of its checkpoint."""

    digest: str


@dataclass(frozen=True)
class KlReference:
    """The reference as a job's options name it; the store finds the checkpoint."""

    option: str
    """The option that names it."""
    target: Step | Lag | Checkpoint

    @property
    def lag(self) -> int | None:
        return self.target.num_versions if isinstance(self.target, Lag) else None


def pin_reference(session: Session, model: ModelRow, reference: KlReference) -> str | None:
    """Return the digest of the reference; None for a lag behind a version that isn't known yet.

    The version's row stays locked until the job is in the store, so that its files can't be deleted in between.

    Raises ConfigError if there is no such version, UnavailableError while version 0 isn't recorded yet.
    """
    if initial_digest(session, model) is None:
        raise not_ready(model.base_model)
    match reference.target:
        case Lag(lag):
            _check_lag(session, model, reference.option, lag)
            return None
        case Checkpoint(digest):
            return _own_checkpoint(session, model, reference.option, digest)
        case Step(step, path):
            owner = model if path is None else _own_model(session, model, reference.option, path)
            version = find_version(session, owner, step, lock=True)
            if version is None:
                why = fate(owner, step, find_retired(session, owner, step))
                raise ConfigError(reference.option, f"there is no version {owner.path}:step{step}; {why}")
            return version.digest


def lagged_digest(session: Session, job: JobRow, model: ModelRow, lag: int, current_step: int) -> str | None:
    """Return the digest of the version that lies `lag` before the current one, at least version 0.

    A version that was deleted after the job was accepted still serves, because its files are kept. None if it was
    deleted before.
    """
    step = max(0, current_step - lag)
    if step == 0:
        return initial_digest(session, model)
    return session.scalar(
        select(VersionRow.digest).where(
            VersionRow.model_id == job.model_id,
            VersionRow.step == step,
            or_(VersionRow.deleted_at.is_(None), VersionRow.deleted_at > job.created_at),
        )
    )


def _check_lag(session: Session, model: ModelRow, option: str, lag: int) -> None:
    """Reject a lag to a deleted version. If the model has other open jobs, only the claim can check."""
    has_open = session.scalar(select(JobRow.id).where(JobRow.model_id == model.id, is_open()).limit(1))
    current = find_version(session, model)
    if has_open is None and current and find_version(session, model, max(0, current.step - lag)) is None:
        raise ConfigError(
            option,
            f"version {current.step - lag} of {model.path}, {lag} before the current one, was deleted; "
            "choose another lag",
        )


def _own_model(session: Session, model: ModelRow, option: str, path: tuple[str, str, str]) -> ModelRow:
    owner = find_by_name(session, *path) if path[0] == model.entity else None
    if owner is None:
        raise ConfigError(option, f"entity {model.entity!r} has no model {'/'.join(path)}; name one of its models")
    if owner.base_model != model.base_model:
        raise ConfigError(
            option,
            f"{owner.path} is on base model {owner.base_model}, but this job's model is on {model.base_model}; "
            "choose a reference on the same base model",
        )
    return owner


def _own_checkpoint(session: Session, model: ModelRow, option: str, digest: str) -> str:
    if initial_digest(session, model) == digest:
        return digest
    query = (
        select(VersionRow.digest)
        .join(ModelRow, ModelRow.id == VersionRow.model_id)
        .where(VersionRow.digest == digest, VersionRow.deleted_at.is_(None))
        .where(ModelRow.entity == model.entity, ModelRow.base_model == model.base_model)
        .limit(1)
        .with_for_update(of=VersionRow)
    )
    found = session.scalar(query)
    if found is None:
        raise ConfigError(
            option, f"no version of entity {model.entity!r} on base model {model.base_model} has checkpoint {digest}"
        )
    return found
