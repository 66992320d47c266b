"""Versions that no job makes: imported ones, and those that a fork shares with the model it was forked from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import null, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tandem.serve.errors import ConflictError, InvalidRequestError, NotFoundError, Problem
from tandem.serve.names import quoted
from tandem.serve.store.database import Database
from tandem.serve.store.policies.models import already_exists, check_base_model, find_by_name, find_model, new_model
from tandem.serve.store.policies.versions import need_version
from tandem.serve.store.tables.training import JobRow, ModelRow, VersionRow, is_open
from tandem.serve.store.training.open_runs import check_no_open_run

IMPORT, FORK, RUN = "import", "fork", "run"
DISAGREES = "engine_disagrees"
"""In the origin of a client's version: why an engine doesn't answer with it as the learners do, or may not."""


@dataclass(frozen=True)
class ForkSource:
    """The version from which a new model begins."""

    model_id: str
    step: int | None = None
    """None: the newest."""
    optimizer: bool | None = None
    """Whether the new model continues with the version's optimizer state; None: if it has one."""


class Lineage:
    def __init__(self, database: Database):
        self._database = database

    def find_source(self, entity: str, named: str) -> ModelRow:
        """Return the entity's model with this id, or with this name: entity/project/name or project/name.

        Raises NotFoundError.
        """
        with self._database.read() as session:
            if "/" not in named:
                return find_model(session, named, entity)
            owner, project, name = [entity, *named.split("/")][-3:] if named.count("/") <= 2 else ("", "", "")
            model = find_by_name(session, owner, project, name) if owner == entity else None
        if model is None:
            raise NotFoundError(
                f"There is no model {quoted(named)} to fork: check the name, and whether the key's entity owns it.",
                "model_not_found",
                "from.model",
            )
        return model

    def fork(
        self,
        entity: str,
        project: str,
        name: str,
        base_model: str,
        source: ForkSource,
        return_existing: bool = False,
        first_step: int = 1,
    ) -> ModelRow:
        """Register a model whose first version is a version of another model of the entity. They share its files.

        It has the source's LoRA settings. A fork of version 0 has no other version yet. With `return_existing`, a fork
        of the same version that exists is returned, so that a request can be repeated.

        Raises NotFoundError or GoneError if there is no such version, InvalidRequestError if it is on another base
        model or lacks the optimizer state that is asked for, ConflictError if the name is taken.
        """
        try:
            with self._database.write() as session:
                # Its lock orders the fork and a deletion of the model, so that the files outlive the fork.
                origin = find_model(session, source.model_id, entity, lock=True)
                if existing := find_by_name(session, entity, project, name):
                    return _same_fork(existing, origin, base_model, source, return_existing)
                return self._fork(
                    session,
                    new_model(entity, project, name, base_model, self._database.now()),
                    origin,
                    source,
                    first_step,
                )
        except IntegrityError:  # another request has just taken the name
            return self.fork(entity, project, name, base_model, source, return_existing, first_step)

    def _fork(
        self, session: Session, model: ModelRow, source_model: ModelRow, source: ForkSource, first_step: int
    ) -> ModelRow:
        if source_model.base_model != model.base_model:
            raise InvalidRequestError(
                [
                    Problem(
                        ("body", "base_model"),
                        f"{source_model.path} is on base model {source_model.base_model}, and so is every fork of it",
                    )
                ]
            )
        version = need_version(session, source_model, source.step, "from.step", lock=True)
        row = session.get(VersionRow, (source_model.id, version.step)) if version.step else None
        has_optimizer = row is not None and row.optimizer_kind is not None and row.optimizer_expired_at is None
        if source.optimizer and not has_optimizer:
            raise InvalidRequestError(
                [
                    Problem(
                        ("body", "from", "optimizer"),
                        f"version {version.step} of {source_model.path} has no optimizer state; leave this out, or "
                        "send false to begin with a new optimizer",
                    )
                ]
            )
        with_optimizer = has_optimizer and source.optimizer is not False
        origin = {
            "model": source_model.path,
            "model_id": source_model.id,
            "step": version.step,
            "optimizer": with_optimizer,
        }
        model.lora, model.initial_digest, model.origin = source_model.lora, source_model.initial_digest, origin
        session.add(model)
        session.flush()  # the version refers to it
        if row is not None:
            now = self._database.now()
            session.add(
                VersionRow(
                    model_id=model.id,
                    step=first_step,
                    digest=row.digest,
                    metrics=row.metrics,
                    created_at=now,
                    optimizer_kind=row.optimizer_kind or null(),
                    optimizer_expired_at=None if with_optimizer else now,
                    origin={"kind": FORK, **origin},
                )
            )
            model.next_step = first_step + 1
        return model

    def find_import(self, model_id: str, content_sha256: str, import_key: str | None) -> VersionRow | None:
        """Return the version that this key imported; without a key the newest one, if the same content made it.

        Raises ConflictError if the key imported another content.
        """
        with self._database.read() as session:
            return _find_import(session, model_id, content_sha256, import_key)

    def check_importable(self, model_id: str, entity: str) -> ModelRow:
        """Return the model. Raises NotFoundError, and ConflictError while one of its jobs is at work."""
        with self._database.read() as session:
            model = find_model(session, model_id, entity)
            _check_no_job_has_begun(session, model)
            return model

    def add_import(
        self,
        model_id: str,
        entity: str,
        step: int,
        digest: str,
        origin: dict[str, Any],
        content_sha256: str,
        import_key: str | None = None,
    ) -> VersionRow | None:
        """Add an imported version. Return None if another version has taken the step, or a later one, meanwhile.

        A repeat of the import returns the version that it made. Raises as `find_import` and `check_importable` do.
        """
        now = self._database.now()
        with self._database.write() as session:
            model = find_model(session, model_id, entity, lock=True)  # which also keeps its jobs from being claimed
            if first := _find_import(session, model_id, content_sha256, import_key):
                return first
            _check_no_job_has_begun(session, model)
            if step < model.next_step:
                return None
            version = VersionRow(
                model_id=model_id,
                step=step,
                digest=digest,
                metrics={},
                created_at=now,
                optimizer_kind=null(),  # None would be the column's default
                origin={"kind": IMPORT, "sha256": content_sha256, **origin},
                import_key=import_key,
            )
            session.add(version)
            model.next_step = step + 1
            session.flush()
            session.refresh(version)
            return version


def _same_fork(
    existing: ModelRow, origin: ModelRow, base_model: str, source: ForkSource, return_existing: bool
) -> ModelRow:
    """Return the existing model if it is the fork that is asked for. Raises ConflictError."""
    check_base_model(existing, base_model)
    if not return_existing:
        raise already_exists(existing)
    made_from = existing.origin or {}
    is_same = (
        made_from.get("model_id") == origin.id
        and source.step in (None, made_from["step"])
        and source.optimizer in (None, made_from["optimizer"])
    )
    if not is_same:
        raise ConflictError(
            f"Model {existing.path} already exists, and isn't that fork. Choose another name, or delete it first.",
            "model_exists",
            "from",
        )
    return existing


def _find_import(session: Session, model_id: str, content_sha256: str, import_key: str | None) -> VersionRow | None:
    live = select(VersionRow).where(VersionRow.model_id == model_id, VersionRow.deleted_at.is_(None))
    if import_key is not None:
        keyed = select(VersionRow).where(VersionRow.model_id == model_id, VersionRow.import_key == import_key)
        if first := session.scalar(keyed):
            if (first.origin or {}).get("sha256") != content_sha256:
                raise ConflictError(
                    f"Idempotency-Key {import_key!r} was used for version {first.step} with another adapter. "
                    "Send the same one to get that version again, or a new key for a new version.",
                    "idempotency_key_reused",
                    "Idempotency-Key",
                )
            if first.deleted_at is not None:
                raise ConflictError(
                    f"Version {first.step}, which Idempotency-Key {import_key!r} imported, was deleted. "
                    "Send a new key to import the adapter again.",
                    "idempotency_key_reused",
                    "Idempotency-Key",
                )
            return first
        return None
    newest = session.scalar(live.order_by(VersionRow.step.desc()).limit(1))
    is_same = newest is not None and (newest.origin or {}).get("sha256") == content_sha256
    return newest if is_same else None


def _check_no_job_has_begun(session: Session, model: ModelRow) -> None:
    """Raise ConflictError for a job or a run whose result would no longer follow the version that it started from."""
    check_no_open_run(session, model)
    begun = select(JobRow.id).where(JobRow.model_id == model.id, is_open(), JobRow.attempt > 0).limit(1)
    if job_id := session.scalar(begun):
        raise ConflictError(
            f"Training job {job_id} of {model.path} has begun from the newest version, and its result follows that. "
            "Import the adapter once the job has ended, or cancel it. Queued jobs then start from the imported one.",
            "job_in_progress",
            "model_id",
        )
