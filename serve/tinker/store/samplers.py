"""Sampling clients, each pinned to one checkpoint."""

from __future__ import annotations

from sqlalchemy import Select, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tandem.serve.errors import BadRequestError, NotFoundError, Problem
from tandem.serve.names import quoted
from tandem.serve.store.database import Database
from tandem.serve.store.policies.versions import not_ready
from tandem.serve.store.tables.tinker import SamplerRow
from tandem.serve.store.tables.training import InitialVersionRow
from tandem.serve.tinker.store.checkpoints import find_checkpoint
from tandem.serve.tinker.store.paths import parse_path, sampler_id
from tandem.serve.tinker.store.sessions import find_session


class Samplers:
    """For a caller, samplers of other entities don't exist."""

    def __init__(self, database: Database):
        self._database = database

    def create(
        self, entity: str, key_id: str | None, session_id: str, seq: int, base_model: str | None, path: str | None
    ) -> SamplerRow:
        """Pin a sampler to a checkpoint, or to version 0 of a base model. A repeat returns the same sampler.

        Raises NotFoundError or GoneError without session or checkpoint, BadRequestError for a wrong address, for a base
        model that isn't the checkpoint's, and for the number of another sampler of the session, UnavailableError while
        the base model starts.
        """
        try:
            with self._database.write() as session:
                find_session(session, entity, session_id)
                if (first := session.scalar(_of_session(session_id, seq))) is not None:
                    return _same(first, base_model, path)
                row = self._new(session, entity, key_id, session_id, seq, base_model, path)
                session.add(row)
            return row
        except IntegrityError:  # the same request arrived twice at once
            with self._database.read() as session:
                return _same(session.scalars(_of_session(session_id, seq)).one(), base_model, path)

    def _new(
        self,
        session: Session,
        entity: str,
        key_id: str | None,
        session_id: str,
        seq: int,
        base_model: str | None,
        path: str | None,
    ) -> SamplerRow:
        now = self._database.now()
        row = SamplerRow(
            id=sampler_id(session_id, seq),
            session_id=session_id,
            seq=seq,
            entity=entity,
            key_id=key_id,
            path=path,
            created_at=now,
        )
        if path is None:
            if base_model is None:
                message = "names no model: send base_model, or the address of a checkpoint as model_path"
                raise BadRequestError([Problem(("body", "base_model"), message)])
            initial = session.get(InitialVersionRow, base_model)
            if initial is None:
                raise not_ready(base_model)
            row.base_model, row.digest = base_model, initial.digest
            return row
        found = find_checkpoint(session, entity, parse_path(path, "model_path"), "model_path", now, lock=True)
        if base_model not in (None, found.base_model):
            message = f"is {quoted(base_model or '')}, but the checkpoint is on base model {found.base_model}"
            raise BadRequestError([Problem(("body", "base_model"), message)])
        row.base_model, row.model_id, row.step = found.base_model, found.model_id, found.step
        row.digest = found.digest
        return row

    def get(self, entity: str, id: str) -> SamplerRow:
        """Return a sampler. Raises NotFoundError."""
        with self._database.read() as session:
            row = session.scalar(select(SamplerRow).where(SamplerRow.id == id, SamplerRow.entity == entity))
        if row is None:
            raise NotFoundError(
                f"There is no sampling session {quoted(id)}: the id is wrong, or it belongs to another entity. Create "
                "a sampling client again.",
                "sampler_not_found",
                "sampling_session_id",
            )
        return row

    def of_session(self, session_id: str) -> list[str]:
        """Return the ids of a session's samplers in their order."""
        query = select(SamplerRow.id).where(SamplerRow.session_id == session_id).order_by(SamplerRow.number)
        with self._database.read() as session:
            return list(session.scalars(query))


def _of_session(session_id: str, seq: int) -> Select[SamplerRow]:
    return select(SamplerRow).where(SamplerRow.session_id == session_id, SamplerRow.seq == seq)


def _same(first: SamplerRow, base_model: str | None, path: str | None) -> SamplerRow:
    if first.path != path or (path is None and first.base_model != base_model):
        message = (
            f"{first.seq} is the number of another sampling session of this session, on "
            f"{first.path or first.base_model}. Send a new number"
        )
        raise BadRequestError([Problem(("body", "sampling_session_seq_id"), message)], "sequence_number_reused")
    return first
