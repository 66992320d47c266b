"""KL references in the store: found and pinned when a job is accepted, or claimed, and kept until it ends."""

from __future__ import annotations

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from tandem.serve.api.kl_reference import KlReference, bad_reference
from tandem.serve.store.models import find_by_name
from tandem.serve.store.tables import InitialVersionRow, JobRow, ModelRow, VersionRow, is_open
from tandem.serve.store.versions import find_version, not_ready


def pin_reference(session: Session, model: ModelRow, wanted: KlReference) -> str | None:
    """The digest of the reference, None for a lag behind a version that isn't known yet.

    The version's row stays locked until the job is in the store, so that its files can't go in between.

    Raises InvalidRequestError when there is no such version, UnavailableError when version 0 isn't recorded yet.
    """
    if session.get(InitialVersionRow, model.base_model) is None:
        raise not_ready(model.base_model)
    if wanted.lag is not None:
        _check_lag(session, model, wanted.lag)
        return None
    if wanted.digest is not None:
        return _own_checkpoint(session, model, wanted)
    owner = model if wanted.path is None else _own_model(session, model, wanted)
    version = find_version(session, owner, wanted.step, lock=True)
    if version is None:
        raise bad_reference(wanted.field, f"there is no version {owner.path}:step{wanted.step}; {_fate(owner, wanted)}")
    return version.digest


def lagged_digest(session: Session, job: JobRow, model: ModelRow, current_step: int) -> str | None:
    """The digest of the version that lies the job's lag before the one it starts from, at least version 0.

    A version deleted after the job was accepted still serves: its files are kept. None when it was deleted before.
    """
    step = max(0, current_step - job.reference_lag)
    if step == 0:
        return session.get_one(InitialVersionRow, model.base_model).digest
    return session.scalar(
        select(VersionRow.digest).where(
            VersionRow.model_id == job.model_id,
            VersionRow.step == step,
            or_(VersionRow.deleted_at.is_(None), VersionRow.deleted_at > job.created_at),
        )
    )


def _check_lag(session: Session, model: ModelRow, lag: int) -> None:
    """Refuses a lag that leads to a deleted version. Behind other jobs, only the claim can tell."""
    waits = session.scalar(select(JobRow.id).where(JobRow.model_id == model.id, is_open()).limit(1))
    current = find_version(session, model)
    if waits is None and current and find_version(session, model, max(0, current.step - lag)) is None:
        raise bad_reference(
            "kl_penalty_step_lag",
            f"version {current.step - lag} of {model.path}, {lag} before the current one, was deleted; "
            "choose another lag",
        )


def _own_model(session: Session, model: ModelRow, wanted: KlReference) -> ModelRow:
    entity, project, name = wanted.path
    owner = find_by_name(session, entity, project, name) if entity == model.entity else None
    if owner is None:
        raise bad_reference(
            wanted.field, f"entity {model.entity!r} has no model {entity}/{project}/{name}; name one of its own"
        )
    if owner.base_model != model.base_model:
        raise bad_reference(
            wanted.field,
            f"{owner.path} is on base model {owner.base_model}, but this job's model is on {model.base_model}; "
            "a reference shares the base model",
        )
    return owner


def _own_checkpoint(session: Session, model: ModelRow, wanted: KlReference) -> str:
    if session.get_one(InitialVersionRow, model.base_model).digest == wanted.digest:
        return wanted.digest
    query = (
        select(VersionRow.digest)
        .join(ModelRow, ModelRow.id == VersionRow.model_id)
        .where(VersionRow.digest == wanted.digest, VersionRow.deleted_at.is_(None))
        .where(ModelRow.entity == model.entity, ModelRow.base_model == model.base_model)
        .limit(1)
        .with_for_update(of=VersionRow)
    )
    digest = session.scalar(query)
    if digest is None:
        raise bad_reference(
            wanted.field,
            f"no version of entity {model.entity!r} on base model {model.base_model} has checkpoint {wanted.digest}",
        )
    return digest


def _fate(model: ModelRow, wanted: KlReference) -> str:
    return "it was deleted" if wanted.step < model.next_step else "that step hasn't been trained yet"
