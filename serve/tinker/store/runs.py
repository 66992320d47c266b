"""Runs: the models that clients train. Each is a model of the service, too, so that it can be sampled by its name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, null, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tandem.serve.errors import BadRequestError, NotFoundError, Problem
from tandem.serve.names import quoted
from tandem.serve.store.database import Database
from tandem.serve.store.policies.lineage import FORK, RUN
from tandem.serve.store.policies.models import find_by_name, new_model
from tandem.serve.store.policies.versions import initial_digest as initial_digest_of
from tandem.serve.store.policies.versions import not_ready
from tandem.serve.store.tables.tinker import RunRow
from tandem.serve.store.tables.training import ModelRow, VersionRow
from tandem.serve.store.training.open_runs import unload
from tandem.serve.tinker.store.checkpoints import find_checkpoint
from tandem.serve.tinker.store.paths import parse_path, run_id
from tandem.serve.tinker.store.sessions import find_session

OPTIMIZER_KIND = "tinker"
"""Of versions that runs make: jobs of other kinds begin with a new optimizer."""


@dataclass(frozen=True)
class Start:
    """The checkpoint that a new run begins with."""

    path: str
    with_optimizer: bool


@dataclass(frozen=True)
class _NewRun:
    session_id: str
    model_seq_id: int
    base_model: str
    lora: Mapping[str, Any] | None
    initial_digest: str | None
    flags: Mapping[str, Any]
    user_metadata: Mapping[str, Any] | None
    start: Start | None

    @property
    def sha256(self) -> str:
        """Of what the client asked for."""
        start = None if self.start is None else [self.start.path, self.start.with_optimizer]
        asked = [self.base_model, self.lora, self.flags, self.user_metadata, start]
        return hashlib.sha256(json.dumps(asked, sort_keys=True, default=dict).encode()).hexdigest()


class Runs:
    """For a caller, runs of other entities don't exist."""

    def __init__(self, database: Database, project: str):
        """`project` is that of the models of runs whose session names none."""
        self._database, self._project = database, project

    def create(
        self,
        entity: str,
        key_id: str | None,
        session_id: str,
        model_seq_id: int,
        base_model: str,
        lora: Mapping[str, Any] | None,
        initial_digest: str | None,
        flags: Mapping[str, Any],
        user_metadata: Mapping[str, Any] | None = None,
        start: Start | None = None,
    ) -> RunRow:
        """Register a run and its model. A repeat returns the same run.

        `lora` are the model's own settings, and `initial_digest` the version 0 that was made with them; None: those of
        the base model. `flags` are what the client asked for: seed, train_mlp, train_attn, train_unembed. A run that
        begins with a checkpoint has it as version 1 of its model.

        Raises NotFoundError or GoneError without session or checkpoint, BadRequestError if the number belongs to
        another run of the session or the checkpoint doesn't fit, UnavailableError while the base model starts.
        """
        new = _NewRun(session_id, model_seq_id, base_model, lora, initial_digest, flags, user_metadata, start)
        try:
            with self._database.write() as session:
                project = find_session(session, entity, new.session_id).project or self._project
                if (first := session.scalar(_of_session(new))) is not None:
                    return _same(first, new)
                return self._create(session, entity, key_id, project, new)
        except IntegrityError:
            with self._database.read() as session:
                first = session.scalar(_of_session(new))
                project = find_session(session, entity, new.session_id).project or self._project
                taken = find_by_name(session, entity, project, _model_name(new))
            if first is None:
                assert taken is not None, "the run broke another constraint"
                message = f"is the name of a model of its own, {taken.path}. Delete that model, or send a new number"
                raise BadRequestError([Problem(("body", "model_seq_id"), message)], "model_exists") from None
            return _same(first, new)

    def _create(self, session: Session, entity: str, key_id: str | None, project: str, new: _NewRun) -> RunRow:
        now = self._database.now()
        model = new_model(entity, project, _model_name(new), new.base_model, now)
        model.lora, model.initial_digest = None if new.lora is None else dict(new.lora), new.initial_digest
        run = RunRow(
            id=run_id(new.session_id, new.model_seq_id),
            session_id=new.session_id,
            model_seq_id=new.model_seq_id,
            entity=entity,
            key_id=key_id,
            base_model=new.base_model,
            model_id=model.id,
            flags=dict(new.flags),
            user_metadata=None if new.user_metadata is None else dict(new.user_metadata),
            request_sha256=new.sha256,
            start_path=new.start and new.start.path,
            created_at=now,
            last_request_at=now,
            anchor_seq=0,
            anchor_has_optimizer=False,
        )
        if new.start is None:
            digest = initial_digest_of(session, model)
            if digest is None:
                raise not_ready(new.base_model)
            run.anchor_digest, run.parent = digest, {"model_id": model.id, "step": 0}
            session.add(model)
        else:
            self._begin_with(session, new.start, model, run)
        session.flush()  # the run refers to its model
        session.add(run)
        return run

    def _begin_with(self, session: Session, start: Start, model: ModelRow, run: RunRow) -> None:
        now = self._database.now()
        found = find_checkpoint(session, model.entity, parse_path(start.path), "path", now, lock=True)
        if found.base_model != model.base_model:
            message = f"{quoted(start.path)} is on base model {found.base_model}, and so is every run from it"
            raise BadRequestError([Problem(("body", "base_model"), message)])
        if start.with_optimizer and not found.has_optimizer:
            message = f"the checkpoint {quoted(start.path)} has no optimizer state; send false for a new optimizer"
            raise BadRequestError([Problem(("body", "optimizer"), message)])
        run.anchor_digest, run.anchor_has_optimizer = found.digest, start.with_optimizer
        origin: dict[str, Any] = {"kind": RUN, "run": run.id, "seq": 0, "path": start.path}
        if found.step is not None:
            source = {"model": found.model_path, "model_id": found.model_id, "step": found.step}
            model.origin = {**source, "optimizer": start.with_optimizer}
            origin = {"kind": FORK, **model.origin}
        elif found.parent is not None:
            origin["parent"] = dict(found.parent)
        model.next_step = 2
        session.add(model)
        session.flush()
        session.add(
            VersionRow(
                model_id=model.id,
                step=1,
                digest=found.digest,
                metrics={},
                created_at=now,
                optimizer_kind=OPTIMIZER_KIND if start.with_optimizer else null(),
                origin=origin,
            )
        )
        run.parent = {"model_id": model.id, "step": 1}

    def get(self, entity: str, id: str) -> RunRow:
        """Return a run. Raises NotFoundError."""
        with self._database.read() as session:
            return find_run(session, entity, id)

    def with_model(self, entity: str, id: str) -> tuple[RunRow, ModelRow]:
        """Return a run and its model, which may be deleted. Raises NotFoundError."""
        with self._database.read() as session:
            run = find_run(session, entity, id)
            return run, session.scalars(select(ModelRow).where(ModelRow.id == run.model_id)).one()

    def page(self, entity: str, limit: int, offset: int = 0) -> tuple[Sequence[tuple[RunRow, ModelRow]], int]:
        """Return runs with their models, the newest first, and how many there are."""
        query = select(RunRow, ModelRow).join(ModelRow, ModelRow.id == RunRow.model_id).where(RunRow.entity == entity)
        count = select(func.count()).select_from(RunRow).where(RunRow.entity == entity)
        with self._database.read() as session:
            rows = session.execute(query.order_by(RunRow.number.desc()).limit(limit).offset(offset))
            return [(run, model) for run, model in rows], session.scalar(count) or 0

    def of_session(self, session_id: str) -> list[str]:
        """Return the ids of a session's runs in their order."""
        query = select(RunRow.id).where(RunRow.session_id == session_id).order_by(RunRow.number)
        with self._database.read() as session:
            return list(session.scalars(query))

    def unload(self, entity: str, id: str) -> list[str]:
        """End a run. The calls that wait fail, and its model may be trained by jobs. A repeat changes nothing.

        Return the keys of bodies that nothing needs any more. Raises NotFoundError.
        """
        with self._database.write() as session:
            run = find_run(session, entity, id, lock=True)
            return unload(session, run, self._database.now(), "The model was unloaded.")


def find_run(session: Session, entity: str, id: str, lock: bool = False) -> RunRow:
    """Return a run of the entity. Raises NotFoundError."""
    query = select(RunRow).where(RunRow.id == id, RunRow.entity == entity)
    run = session.scalar(query.with_for_update() if lock else query)
    if run is None:
        raise no_run(id)
    return run


def no_run(id: str) -> NotFoundError:
    return NotFoundError(
        f"There is no training run {quoted(id)}: the model_id is wrong, or it belongs to another entity.",
        "run_not_found",
        "model_id",
    )


def not_served(base_model: str) -> str:
    """Return why a run can't continue whose base model isn't configured any more."""
    return (
        f"Base model {base_model} isn't served here any more. Create a new model on another one, or have the operator "
        "add it to base_models again."
    )


def _of_session(new: _NewRun) -> Select[RunRow]:
    return select(RunRow).where(RunRow.session_id == new.session_id, RunRow.model_seq_id == new.model_seq_id)


def _model_name(new: _NewRun) -> str:
    return f"{new.session_id}-train-{new.model_seq_id}"


def _same(first: RunRow, new: _NewRun) -> RunRow:
    if first.request_sha256 != new.sha256:
        message = (
            f"{first.model_seq_id} is the number of run {first.id}, which was asked for differently; send a new one"
        )
        raise BadRequestError([Problem(("body", "model_seq_id"), message)], "sequence_number_reused")
    return first
