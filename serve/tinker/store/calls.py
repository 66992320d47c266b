"""The journal of calls: each number of a run is taken once, whatever a client repeats."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tandem.cluster.calls.call import CallKind
from tandem.cluster.config.tinker import TinkerConfig
from tandem.serve.errors import BadRequestError, Problem, QueueFullError
from tandem.serve.store.database import Database
from tandem.serve.store.tables import ModelRow
from tandem.serve.store.tinker_tables import CallRow, RunRow, is_unanswered
from tandem.serve.tinker.store.checkpoints import find_checkpoint
from tandem.serve.tinker.store.outcomes import Outcome, Outcomes
from tandem.serve.tinker.store.paths import call_request_id, parse_path
from tandem.serve.tinker.store.runs import find_run

MAX_AHEAD = 4096
"""How far a number may lie beyond the highest one that has arrived."""


class Calls:
    """For a caller, runs of other entities don't exist."""

    def __init__(self, database: Database, config: TinkerConfig):
        self._database, self._config = database, config
        self._outcomes = Outcomes(database, config.result_s)

    def find(self, entity: str, run_id: str, seq: int, kind: CallKind, body_sha256: str) -> str | None:
        """Return the request id of a call that has arrived before, None for a new number.

        Raises NotFoundError without the run, BadRequestError if the number was used for another call.
        """
        with self._database.read() as session:
            return _find(session, find_run(session, entity, run_id), seq, kind, body_sha256)

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

        A call of an unloaded run is recorded as failed. `options` of load_weights name the checkpoint by `path`; its
        digest is added. Raises NotFoundError without the run or the checkpoint to load, BadRequestError if the number
        was used for another call or the checkpoint doesn't fit, QueueFullError if too many calls wait.
        """
        with self._database.write() as session:
            run = find_run(session, entity, run_id, lock=True)
            if (request_id := _find(session, run, seq, kind, body_sha256)) is not None:
                return request_id
            call = self._new(session, run, seq, kind, body_sha256)
            if run.unloaded_at is not None:
                call.answered_at, call.category = call.arrived_at, "user"
                call.error = f"The model was unloaded at {run.unloaded_at:%Y-%m-%d %H:%M:%S} UTC. Create a new one."
            else:
                self._check_room(session, run, seq)
                call.body_key, call.num_bytes, call.options = body_key, num_bytes, dict(options)
                if kind == "load_weights":
                    self._pin(session, run, call)
            session.add(call)
        return call_request_id(run_id, seq)

    def submit_refused(self, entity: str, run_id: str, seq: int, kind: CallKind, body_sha256: str, message: str) -> str:
        """Record a call whose content can't be accepted: it takes its number, and its result is this user's error.

        Raises NotFoundError without the run, BadRequestError if the number was used for another call.
        """
        with self._database.write() as session:
            run = find_run(session, entity, run_id, lock=True)
            if (request_id := _find(session, run, seq, kind, body_sha256)) is not None:
                return request_id
            call = self._new(session, run, seq, kind, body_sha256)
            call.answered_at, call.error, call.category = call.arrived_at, message, "user"
            session.add(call)
        return call_request_id(run_id, seq)

    def outcome(self, request_id: str, entity: str) -> Outcome:
        """See `Outcomes.outcome`."""
        return self._outcomes.outcome(request_id, entity)

    def poll(self, request_id: str, entity: str) -> Outcome | None:
        """See `Outcomes.poll`."""
        return self._outcomes.poll(request_id, entity)

    def _new(self, session: Session, run: RunRow, seq: int, kind: CallKind, body_sha256: str) -> CallRow:
        highest = session.scalar(select(func.max(CallRow.seq)).where(CallRow.run_id == run.id)) or run.applied_seq
        if seq > highest + MAX_AHEAD:
            message = (
                f"is {seq}, but the highest number of a call of {run.id} so far is {highest}: the calls of a model "
                "have the numbers 1, 2, 3, ..."
            )
            raise BadRequestError([Problem(("body", "seq_id"), message)], "sequence_number_too_high")
        now = self._database.now()
        run.last_request_at = now
        return CallRow(
            run_id=run.id, seq=seq, kind=kind, body_sha256=body_sha256, num_bytes=0, options={}, arrived_at=now
        )

    def _check_room(self, session: Session, run: RunRow, seq: int) -> None:
        """A number that others wait for always has room."""
        before = select(func.count()).where(CallRow.run_id == run.id, is_unanswered(), CallRow.seq < seq)
        if (count := session.scalar(before) or 0) >= self._config.max_waiting_calls:
            raise QueueFullError(
                f"{count} calls of {run.id} wait to be run; the limit is {self._config.max_waiting_calls} "
                "(tinker.max_waiting_calls). Send this one again when some have ended."
            )

    def _pin(self, session: Session, run: RunRow, call: CallRow) -> None:
        """Find the checkpoint that the call loads, and keep its files while the call waits."""
        path = str(call.options["path"])
        found = find_checkpoint(session, run.entity, parse_path(path), "path", self._database.now(), lock=True)
        model = session.scalars(select(ModelRow).where(ModelRow.id == run.model_id)).one()
        if found.base_model != model.base_model:
            message = f"{path} is on base model {found.base_model}, but the model is on {model.base_model}"
            raise BadRequestError([Problem(("body", "path"), message)])
        if found.lora != model.lora:
            message = (
                f"{path} has the LoRA settings {json.dumps(found.lora)}, but the model has {json.dumps(model.lora)}; "
                "create a new model from the checkpoint"
            )
            raise BadRequestError([Problem(("body", "path"), message)])
        if call.options.get("optimizer") and not found.has_optimizer:
            message = f"the checkpoint {path} has no optimizer state; send false for a new optimizer"
            raise BadRequestError([Problem(("body", "optimizer"), message)])
        call.digest = found.digest
        call.options = {**call.options, "digest": found.digest, "parent": found.parent and dict(found.parent)}


def digest_of(options: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a call without a body."""
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()


def _find(session: Session, run: RunRow, seq: int, kind: str, body_sha256: str) -> str | None:
    if seq < 1:
        message = f"is {seq}: the calls of a model have the numbers 1, 2, 3, ..."
        raise BadRequestError([Problem(("body", "seq_id"), message)])
    first = session.get(CallRow, (run.id, seq))
    if first is None and seq > run.applied_seq:
        return None
    known = None if first is None or first.kind == "missing" else (first.kind, first.body_sha256)
    if known not in (None, (kind, body_sha256)):  # of None, only the number is known
        message = (
            f"{seq} is the number of another call of {run.id}, a {known and known[0]}. A repeat must be equal; a new "
            "call needs the next number"
        )
        raise BadRequestError([Problem(("body", "seq_id"), message)], "sequence_number_reused")
    return call_request_id(run.id, seq)
