"""Durable checkpoints of runs: those that clients ask for, published where they are sampled from, and anchors."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.calls.call import Anchor, CallStore, ClaimedRun, RunCall, SavedState
from tandem.cluster.calls.run_state import RunState
from tandem.cluster.calls.sleeping_engines import SleepingEngines
from tandem.cluster.config import TinkerConfig
from tandem.cluster.errors import ClusterError, StageError
from tandem.cluster.processes.deadlines import in_thread
from tandem.cluster.processes.waiting import OnWait
from tandem.rl.errors import RLError

if TYPE_CHECKING:
    from tandem.cluster.jobs.engine_agreement import EngineAgreement
    from tandem.cluster.learners.run_training import RunTraining

logger = logging.getLogger(__name__)


class UnusableStateError(RLError, ValueError):
    """A state that engines can't sample from."""


@dataclass(frozen=True)
class _Publication:
    """A save_for_sampler, as `EngineAgreement` sees it."""

    run: ClaimedRun
    check: OnWait
    reasons: list[str] = field(default_factory=list)
    """What was recorded."""

    def record(self, event: str, data: Mapping[str, Any]) -> None:
        logger.error("Run %s: %s: %s", self.run.id, event, data["reason"])
        self.reasons.append(str(data["reason"]))


@dataclass(frozen=True)
class Saving:
    """Saves the states of one claimed run."""

    run: ClaimedRun
    artifacts: Artifacts
    engines: SleepingEngines
    agreement: EngineAgreement | None
    """Without it, nothing is published to engines before it is requested."""
    on_wait: OnWait

    def save(self, state: RunState, call: RunCall, next_step: int) -> SavedState:
        """Write the present state as a durable checkpoint. That of save_for_sampler has been offered to all engines.

        Raises RLError if the state can't be used, and the errors of the learners.
        """
        is_version, training = call.kind == "save_for_sampler", state.training
        metadata = self._metadata()
        if is_version:
            metadata["step"] = next_step
        agreement = self.agreement if is_version else None
        publication = _Publication(self.run, self.on_wait)
        if agreement:
            self.engines.need_engines()
            agreement.before_training(publication)
        name = f"{self.run.id}/{call.seq}"
        self.engines.need_learners()
        training.finish(name)
        try:
            digest = self._write(training, name, metadata, agreement, next_step, publication)
        finally:
            training.close_save(name)
        num_bytes = sum(self.artifacts.checkpoint_sizes(digest).values())
        warning = " ".join(publication.reasons) or None
        return SavedState(digest, num_bytes, is_anchor=state.is_whole, has_optimizer=True, warning=warning)

    def _write(
        self,
        training: RunTraining,
        name: str,
        metadata: dict[str, str | int],
        agreement: EngineAgreement | None,
        next_step: int,
        publication: _Publication,
    ) -> str:
        """Make a finished state durable, while the engines load it, and return its digest."""
        if agreement is None:
            return training.write(name, metadata)
        self.engines.need_engines()
        offered = agreement.offer(training.seal(name, metadata))
        digest = training.write(name, metadata)
        try:
            agreement.after_publishing(publication, next_step, digest, offered)
        except StageError as error:  # its logits aren't finite
            raise UnusableStateError(str(error)) from error
        return digest

    def _metadata(self) -> dict[str, str | int]:
        return {"base_model": self.run.base_model, "model_id": self.run.model_id}


class Bodies:
    """Deletes bodies that no replay needs any more, in a thread."""

    def __init__(self, artifacts: Artifacts):
        self._artifacts = artifacts

    def delete(self, keys: Sequence[str]) -> None:
        if keys:
            in_thread(lambda: self._delete(keys), "delete-bodies")

    def _delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            try:
                self._artifacts.delete_blob(key)
            except OSError as error:  # the service's hourly search for leftovers finds it
                logger.warning("The body %s wasn't deleted: %s", key, error)


class AnchorWriter:
    """Shortens the journal of one claimed run: writes a checkpoint after some steps, beside the next calls."""

    def __init__(self, run: ClaimedRun, store: CallStore, bodies: Bodies, limits: TinkerConfig):
        self._run, self._store, self._bodies, self._limits = run, store, bodies, limits
        self._writing: Future[None] | None = None

    def after_step(self, state: RunState) -> None:
        """Begin an anchor if it is time for one. Call it right after an optimizer step."""
        is_due = state.num_steps >= self._limits.anchor_steps or state.num_bytes >= self._limits.anchor_bytes
        if not is_due or not state.is_whole or (self._writing is not None and not self._writing.done()):
            return
        state.anchored()
        name, seq = f"{self._run.id}/anchor/{state.seq}", state.seq
        try:
            state.training.finish(name)
        except RLError as error:
            logger.warning("Run %s gets no anchor after call %d: %s", self._run.id, seq, error)
            return
        self._writing = in_thread(lambda: self._write(state, name, seq), "write-anchor")

    def _write(self, state: RunState, name: str, seq: int) -> None:
        metadata: dict[str, str | int] = {"base_model": self._run.base_model, "model_id": self._run.model_id}
        try:
            digest = state.training.write(name, metadata)
            self._bodies.delete(self._store.set_anchor(self._run, Anchor(digest, seq, has_optimizer=True)))
            logger.info("Run %s has an anchor after call %d: %s", self._run.id, seq, digest[:12])
        except (ClusterError, OSError) as error:  # the next one may succeed; the journal stays longer until then
            logger.warning("Run %s has no anchor after call %d: %s", self._run.id, seq, error)
        except Exception:
            logger.exception("The anchor of run %s after call %d failed", self._run.id, seq)
        finally:
            state.training.close_save(name)

    def close(self) -> None:
        """Wait for the anchor that is being written: for the learners and the store, which have deadlines."""
        if self._writing is not None:
            self._writing.exception()  # what failed is logged
