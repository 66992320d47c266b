"""The journal of calls: each number of a run is taken once, whatever a client repeats."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update
from sqlalchemy.orm import Session

from tandem.cluster.calls.call import CallKind
from tandem.cluster.config.tinker import TinkerConfig
from tandem.serve.errors import BadRequestError, Problem, QueueFullError
from tandem.serve.store.database import Database
from tandem.serve.store.tables.tinker import CallRow, RunRow, is_unanswered
from tandem.serve.store.tables.training import ModelRow, plain
from tandem.serve.tinker.store.checkpoints import find_checkpoint
from tandem.serve.tinker.store.outcomes import Outcome, Outcomes
from tandem.serve.tinker.store.paths import call_request_id, parse_path
from tandem.serve.tinker.store.runs import no_run, not_served

MAX_MISSING = 4096
"""Lower numbers of calls that haven't arrived: each gets a row if it is given up."""
UNWRITTEN = timedelta(seconds=1)
"""Requests that follow each other more closely aren't recorded as the run's last one."""


@dataclass(frozen=True)
class Known:
    """What the journal knows of a call that arrives."""

    request_id: str | None
    """Of the call, if it has arrived before."""
    base_model: str | None
    """Of the run; None if its calls aren't executed any more."""


class Calls:
    """For a caller, runs of other entities don't exist."""

    def __init__(self, database: Database, config: TinkerConfig, base_models: Collection[str] | None = None):
        """`base_models`: those that are served; None: all."""
        self._database, self._config, self._base_models = database, config, base_models
        self._outcomes = Outcomes(database, config.result_s, base_models)

    def find(self, entity: str, run_id: str, seq: int, kind: CallKind, body_sha256: str) -> Known:
        """Return what is known of a call before it is recorded.

        Raises NotFoundError without the run, BadRequestError if the number was used for another call.
        """
        with self._database.quick_read() as connection:
            place = _place(connection, entity, run_id, seq)
        is_repeat = place.is_repeat(run_id, seq, kind, body_sha256)
        is_executed = place.unloaded_at is None and self._serves(place.base_model)
        return Known(call_request_id(run_id, seq) if is_repeat else None, place.base_model if is_executed else None)

    def _serves(self, base_model: str) -> bool:
        return self._base_models is None or base_model in self._base_models

    def submit(
        self,
        entity: str,
        run_id: str,
        seq: int,
        kind: CallKind,
        body_sha256: str,
        body_key: str | None,
        options: Mapping[str, Any],
        num_bytes: int,
    ) -> str:
        """Record a call durably, and return its request id; for a repeat, that of the first one.

        A call of an unloaded run, or of one whose base model isn't served, is recorded as failed. `options` of
        load_weights name the checkpoint by `path`; its digest is added.

        Raises NotFoundError without the run or the checkpoint to load, BadRequestError if the number was used for
        another call or the checkpoint doesn't fit, QueueFullError if too many calls wait.
        """
        with self._database.write() as session:
            place = self._take(session, entity, run_id, seq, kind, body_sha256)
            if place is None:
                return call_request_id(run_id, seq)
            now = self._database.now()
            call = self._new(run_id, seq, kind, body_sha256, now)
            if place.unloaded_at is not None:
                error = f"The model was unloaded at {place.unloaded_at:%Y-%m-%d %H:%M:%S} UTC. Create a new one."
                call |= {"answered_at": now, "category": "user", "error": error}
            elif not self._serves(place.base_model):
                call |= {"answered_at": now, "category": "user", "error": not_served(place.base_model)}
            else:
                self._check_room(run_id, place)
                call |= {"body_key": body_key, "num_bytes": num_bytes, "options": dict(options)}
                if kind == "load_weights":
                    call |= self._pin(session, entity, run_id, options)
            session.connection().execute(_ADD, call)
        return call_request_id(run_id, seq)

    def submit_refused(self, entity: str, run_id: str, seq: int, kind: CallKind, body_sha256: str, message: str) -> str:
        """Record a call whose content can't be accepted: it takes its number, and its result is this user's error.

        Raises NotFoundError without the run, BadRequestError if the number was used for another call.
        """
        with self._database.write() as session:
            if self._take(session, entity, run_id, seq, kind, body_sha256) is not None:
                now = self._database.now()
                call = self._new(run_id, seq, kind, body_sha256, now)
                call |= {"answered_at": now, "error": message, "category": "user"}
                session.connection().execute(_ADD, call)
        return call_request_id(run_id, seq)

    def outcome(self, request_id: str, entity: str) -> Outcome:
        """See `Outcomes.outcome`."""
        return self._outcomes.outcome(request_id, entity)

    def poll(self, request_id: str, entity: str) -> Outcome | None:
        """See `Outcomes.poll`."""
        return self._outcomes.poll(request_id, entity)

    def _take(self, session: Session, entity: str, run_id: str, seq: int, kind: str, body_sha256: str) -> _Place | None:
        """Lock the run and return the place of a new call; None for a repeat. Raises what `find` does."""
        place = _place(session.connection(), entity, run_id, seq, lock=True)
        if place.is_repeat(run_id, seq, kind, body_sha256):
            return None
        if seq > place.applied_seq + MAX_MISSING:
            _check_missing(session, run_id, seq, place.applied_seq)
        now = self._database.now()
        if now - place.last_request_at > UNWRITTEN:
            session.connection().execute(_REQUESTED, {"of_run": run_id, "last_request_at": now})
        return place

    @staticmethod
    def _new(run_id: str, seq: int, kind: str, body_sha256: str, now: datetime) -> dict[str, Any]:
        empty = dict.fromkeys(("body_key", "digest", "answered_at", "result", "media_type", "error", "category"))
        call = {"run_id": run_id, "seq": seq, "kind": kind, "body_sha256": body_sha256, "arrived_at": now}
        return {**empty, **call, "num_bytes": 0, "options": {}}

    def _check_room(self, run_id: str, place: _Place) -> None:
        """A number that others wait for always has room."""
        if place.num_before >= self._config.max_waiting_calls:
            raise QueueFullError(
                f"{place.num_before} calls of {run_id} wait to be run; the limit is {self._config.max_waiting_calls} "
                "(tinker.max_waiting_calls). Send this one again when some have ended."
            )

    def _pin(self, session: Session, entity: str, run_id: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Find the checkpoint that a call loads, and return what keeps its files while the call waits."""
        path = str(options["path"])
        found = find_checkpoint(session, entity, parse_path(path), "path", self._database.now(), lock=True)
        of_run = select(ModelRow).join(RunRow, RunRow.model_id == ModelRow.id).where(RunRow.id == run_id)
        model = session.scalars(of_run).one()
        if found.base_model != model.base_model:
            message = f"{path} is on base model {found.base_model}, but the model is on {model.base_model}"
            raise BadRequestError([Problem(("body", "path"), message)])
        if found.lora != model.lora:
            message = (
                f"{path} has the LoRA settings {json.dumps(found.lora)}, but the model has {json.dumps(model.lora)}; "
                "create a new model from the checkpoint"
            )
            raise BadRequestError([Problem(("body", "path"), message)])
        if options.get("optimizer") and not found.has_optimizer:
            message = f"the checkpoint {path} has no optimizer state; send false for a new optimizer"
            raise BadRequestError([Problem(("body", "optimizer"), message)])
        pinned = {"digest": found.digest, "parent": found.parent and dict(found.parent)}
        return {"digest": found.digest, "options": {**options, **pinned}}


def digest_of(options: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a call without a body."""
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Place:
    """What a run knows of a number."""

    base_model: str
    unloaded_at: datetime | None
    applied_seq: int
    last_request_at: datetime
    kind: str | None
    """Of the call that has the number, None if there is none."""
    body_sha256: str | None
    num_before: int
    """Waiting calls with lower numbers."""

    def is_repeat(self, run_id: str, seq: int, kind: str, body_sha256: str) -> bool:
        """Return whether the call has arrived before. Raises BadRequestError if another one has the number."""
        if seq < 1:
            message = f"is {seq}: the calls of a model have the numbers 1, 2, 3, ..."
            raise BadRequestError([Problem(("body", "seq_id"), message)])
        if self.kind in (None, "missing"):  # of a call that is long past, only the number is known
            return self.kind is not None or seq <= self.applied_seq
        if (self.kind, self.body_sha256) != (kind, body_sha256):
            message = (
                f"{seq} is the number of another call of {run_id}, a {self.kind}. A repeat must be equal; a new call "
                "needs the next number"
            )
            raise BadRequestError([Problem(("body", "seq_id"), message)], "sequence_number_reused")
        return True


_OF_RUN = CallRow.run_id == bindparam("of_run")
_WITH_NUMBER = _OF_RUN, CallRow.seq == bindparam("of_call")
_RUN = select(RunRow.base_model, RunRow.unloaded_at, RunRow.applied_seq, RunRow.last_request_at).where(
    RunRow.id == bindparam("of_run"), RunRow.entity == bindparam("entity")
)
_LOCKED_RUN = _RUN.with_for_update()
_NUMBER = select(
    select(CallRow.kind).where(*_WITH_NUMBER).scalar_subquery(),
    select(CallRow.body_sha256).where(*_WITH_NUMBER).scalar_subquery(),
    select(func.count())
    .select_from(CallRow)
    .where(_OF_RUN, is_unanswered(), CallRow.seq < bindparam("of_call"))
    .scalar_subquery(),
)
_REQUESTED = update(plain(RunRow)).where(RunRow.id == bindparam("of_run"))
_ADD = insert(plain(CallRow))


def _place(connection: Connection, entity: str, run_id: str, seq: int, lock: bool = False) -> _Place:
    """Return what a run knows of a number. Raises NotFoundError without the run."""
    run = connection.execute(_LOCKED_RUN if lock else _RUN, {"of_run": run_id, "entity": entity}).first()
    if run is None:
        raise no_run(run_id)
    return _Place(*run, *connection.execute(_NUMBER, {"of_run": run_id, "of_call": seq}).one())


def _check_missing(session: Session, run_id: str, seq: int, applied_seq: int) -> None:
    """Raise BadRequestError if too many calls before this one haven't arrived."""
    arrived = CallRow.run_id == run_id, CallRow.seq > applied_seq, CallRow.seq < seq
    num_missing = seq - applied_seq - 1 - (session.scalar(select(func.count()).where(*arrived)) or 0)
    if num_missing > MAX_MISSING:
        message = (
            f"is {seq}, and {num_missing} calls of {run_id} with lower numbers haven't arrived: the calls of a model "
            "have the numbers 1, 2, 3, ..."
        )
        raise BadRequestError([Problem(("body", "seq_id"), message)], "sequence_number_too_high")
