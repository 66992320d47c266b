"""Executes the calls of one claimed run in their order, and answers each."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.calls.call import Anchor, CallResult, CallStore, CallUsage, Category, ClaimedRun, RunCall
from tandem.cluster.calls.call_metrics import CallMetrics
from tandem.cluster.calls.replay import GRADIENT_KINDS, replay_of
from tandem.cluster.calls.results import load_result, output_result, step_result
from tandem.cluster.calls.run_state import RunState
from tandem.cluster.calls.saving import AnchorWriter, Bodies, Saving
from tandem.cluster.calls.sleeping_engines import SleepingEngines
from tandem.cluster.config import CoordinatorConfig, TinkerConfig
from tandem.cluster.errors import (
    ClusterError,
    LearnersLostError,
    LeaseLostError,
    ServiceStopsError,
    StageError,
    StoreUnavailableError,
)
from tandem.cluster.jobs.engine_sleep import EnginesAsleep
from tandem.cluster.jobs.lease import LeaseKeeper
from tandem.cluster.jobs.running_job import ServiceStop
from tandem.cluster.learners.run_training import RunTraining
from tandem.rl.errors import RLError
from tandem.rl.settings import AdamStep

if TYPE_CHECKING:
    from tandem.cluster.jobs.engine_agreement import EngineAgreement
    from tandem.cluster.learners.group import LearnerGroup

logger = logging.getLogger(__name__)
MAX_LOSSES = 50
"""Times that a call begins again because the learners ended during other work, or forgot the run."""
NUM_EXPECTED = 2
"""Bodies of following calls that learners read ahead."""
SAVES = ("save_weights", "save_for_sampler")
ENDS_THE_CLAIM = (LeaseLostError, ServiceStopsError, StoreUnavailableError)


@dataclass(frozen=True)
class CallParts:
    """What the executions of all runs of a base model share."""

    store: CallStore
    learners: LearnerGroup
    artifacts: Artifacts
    settings: CoordinatorConfig
    limits: TinkerConfig
    counted: CallMetrics
    agreement: EngineAgreement | None = None
    """Without it, engines load a version with its first request."""
    asleep: EnginesAsleep | None = None
    """With it, engines sleep while the learners work."""


class RunExecution:
    """One claim of a run, in a thread of its own.

    A call takes effect in one transaction, its answer. Whatever ends the execution before leaves it unanswered, and the
    next claim executes it again, from the anchor or from a state without its effect.
    """

    def __init__(
        self, run: ClaimedRun, parts: CallParts, lease: LeaseKeeper, stop: ServiceStop, state: RunState | None = None
    ):
        """`state`: what the learners may still hold since an earlier claim."""
        self.run, self.state = run, state
        """`state` is None while the learners are known to hold nothing."""
        self._parts, self._store, self._lease, self._stop = parts, parts.store, lease, stop
        self._training = state.training if state else RunTraining(parts.learners, run.id)
        self._training.called_by(self._on_wait, self._on_wait_turn)
        self._engines = SleepingEngines(parts.asleep, self._on_wait_turn, self._training.free_memory)
        self._saving = Saving(run, parts.artifacts, self._engines, parts.agreement, self._on_wait_turn)
        self._bodies = Bodies(parts.artifacts)
        self._anchors = AnchorWriter(run, self._store, self._bodies, parts.limits)
        self._wake = threading.Event()
        self._must_give_way = False
        self._next_step = run.next_step
        self._shown: str | None = None
        self._expected: set[str] = set()
        self._seconds = 0.0  # of the learners, when the present call began

    def wake(self) -> None:
        """Look for calls again: one may have arrived, or the service stops."""
        self._wake.set()

    def give_way(self) -> None:
        """End now if there is no call, because another run waits for the place."""
        self._must_give_way = True
        self._wake.set()

    def work(self) -> None:
        """Execute calls until none has arrived for `idle_s`, or the service stops. Raises LeaseLostError."""
        idle_since = time.monotonic()
        try:
            while not self._stop.is_requested:
                self._lease.check_held()
                self._wake.clear()
                if self._execute_all(self._store.next_calls(self.run)):
                    idle_since = time.monotonic()
                    continue
                self._engines.need_engines()
                remaining = idle_since + self._parts.limits.idle_s - time.monotonic()
                if self._must_give_way or not self._wake.wait(max(0.0, remaining)):
                    return
        except BaseException:
            self._forget()
            raise
        finally:
            self._engines.need_engines()
            self._anchors.close()
            self._show_waiting(None)

    def _execute_all(self, calls: Sequence[RunCall]) -> int:
        """Execute the calls that haven't ended. Return how many there were."""
        ended: list[RunCall] = []
        num_executed = 0
        for index, call in enumerate(calls):
            if self._stop.is_requested:
                break
            if call.outcome is not None:
                ended.append(call)
                continue
            self._expect(later.body_key for later in calls[index + 1 :] if later.outcome is None)
            self._execute(call, ended)
            ended = []
            num_executed += 1
        return num_executed

    def _expect(self, body_keys: Iterable[str | None]) -> None:
        """Let the learners read the first of these bodies ahead."""
        keys = [key for key in islice(filter(None, body_keys), NUM_EXPECTED) if key not in self._expected]
        if keys and self._training.expect(keys):
            self._expected = {*keys, *islice(self._expected, 4 * NUM_EXPECTED)}

    def _execute(self, call: RunCall, ended: Sequence[RunCall]) -> None:
        """Execute a call to its end. `ended`: the failed ones between it and the one before."""
        began, self._seconds = time.monotonic(), self._training.seconds
        num_tries = num_losses = 0
        while True:
            try:
                self._try(call, ended)
                self._parts.counted.ended(call.kind, "answered", time.monotonic() - began)
                break
            except ENDS_THE_CLAIM:
                raise
            except RLError as error:
                self._refuse(call, str(error), "user")
                break
            except LearnersLostError as error:
                self._forget()
                num_losses += 1
                if num_losses > MAX_LOSSES:
                    self._refuse(call, f"{error} That happened {num_losses} times. Send the call again.", "server")
                    break
            except (StageError, OSError) as error:
                self._forget()
                num_tries += 1
                is_final = isinstance(error, StageError) and not error.retryable
                logger.warning("Call %d of run %s, try %d: %s", call.seq, self.run.id, num_tries, error)
                if is_final or num_tries >= self._parts.settings.max_attempts:
                    self._refuse(call, f"{error} (try {num_tries} of {self._parts.settings.max_attempts})", "server")
                    break
                self._parts.counted.repeated(call.kind)
            except Exception as error:
                logger.exception("Call %d of run %s failed", call.seq, self.run.id)
                self._forget()
                said = f"Unexpected {type(error).__name__}: {error}. The coordinator's log has the traceback."
                self._refuse(call, said, "server")
                break
        self._show_waiting(None)
        if self.state is not None and call.kind == "optim_step":
            self._begin_anchor(self.state)

    def _try(self, call: RunCall, ended: Sequence[RunCall]) -> None:
        if self._is_ready():
            self._pass(ended)
            self._answer(call)
            return
        self._engines.need_learners()
        anchor, calls = self._store.answered_since_anchor(self.run)
        with self._training.together(sum(past.num_bytes for past in (*calls, call))):
            self._rebuild(anchor, calls)
            self._pass(ended)
            if call.kind not in SAVES:  # which need the engines, and others may have the learners meanwhile
                return self._answer(call)
        self._answer(call)

    def _is_ready(self) -> bool:
        if self.state is not None and not self._training.is_held:
            self._forget()
        return self.state is not None

    def _rebuild(self, anchor: Anchor, calls: Sequence[RunCall]) -> None:
        """Make the run's state again, from its anchor and the calls that have ended since."""
        began = time.monotonic()
        replay = replay_of(calls)
        try:
            self._training.open(anchor.digest, fresh_optimizer=not anchor.has_optimizer)
            for index, call in enumerate(replay.calls, start=1):
                self._expect(later.body_key for later in replay.calls[index:])
                self._repeat(call)
        except RLError as error:
            raise StageError(
                "replay",
                f"the run's state can't be made again from checkpoint {anchor.digest[:12]} and its calls: {error}.",
                "Load an earlier checkpoint of it into a new training client.",
            ) from error
        seq = calls[-1].seq if calls else anchor.seq
        self.state = RunState(
            *(self._training, seq, replay.has_gradient, replay.failed_seq, replay.num_steps, replay.num_bytes)
        )
        if replay.calls:
            logger.info(
                "Made the state of run %s again from call %d to %d, with %d calls, in %.3f s",
                *(self.run.id, anchor.seq, seq, len(replay.calls), time.monotonic() - began),
            )

    def _repeat(self, call: RunCall) -> None:
        if call.kind == "forward_backward":
            assert call.body_key is not None
            self._training.accumulate(call.body_key, call.num_bytes)
        elif call.kind == "optim_step":
            self._training.apply_adam(AdamStep(**call.options))
        elif call.kind == "load_weights":
            self._training.open(call.options["digest"], fresh_optimizer=not call.options["optimizer"])

    def _pass(self, ended: Sequence[RunCall]) -> None:
        """Account for calls that failed before they could be executed."""
        state = self._known
        for call in ended:
            if call.kind == "optim_step":
                self._discard(state)
            elif call.kind in GRADIENT_KINDS and state.failed_seq is None:
                state.failed_seq = call.seq

    def _discard(self, state: RunState) -> None:
        if state.has_gradient:
            self._training.discard_gradient()
        state.has_gradient, state.failed_seq = False, None

    @property
    def _known(self) -> RunState:
        assert self.state is not None, "a call is executed with a state"
        return self.state

    def _answer(self, call: RunCall) -> None:
        """Execute a call with the state that the learners hold, and record its answer."""
        match call.kind:
            case "forward_backward" | "forward":
                result = self._forward(call)
            case "optim_step":
                if self._known.failed_seq is not None:
                    failed = self._known.failed_seq
                    self._discard(self._known)
                    return self._refuse(call, _incomplete(call.seq, failed), "user")
                result = self._step(call)
            case "save_weights" | "save_for_sampler":
                result = self._save(call)
            case "load_weights":
                result = self._load(call)
            case _:
                raise AssertionError(f"{call.kind} can't be executed")
        keys = self._store.answer(self.run, call, result)
        self._known.seq = call.seq
        if result.anchor is not None:
            self._known.anchored()
        self._bodies.delete(keys)

    def _forward(self, call: RunCall) -> CallResult:
        assert call.body_key is not None, f"call {call.seq} has no body"
        self._engines.need_learners()
        is_forward_only = call.kind == "forward"
        output = self._training.accumulate(call.body_key, call.num_bytes, is_forward_only)
        if is_forward_only:
            return output_result(output, self._usage(scored_tokens=output.num_tokens))
        self._known.has_gradient = True
        self._known.num_bytes += call.num_bytes
        self._parts.counted.trained(output.num_tokens)
        return output_result(output, self._usage(trained_tokens=output.num_tokens))

    def _step(self, call: RunCall) -> CallResult:
        self._engines.need_learners()
        try:
            metrics = self._training.apply_adam(AdamStep(**call.options))
        finally:
            self._known.has_gradient = False
        self._known.num_steps += 1
        return step_result(metrics, self._usage())

    def _save(self, call: RunCall) -> CallResult:
        saved = self._saving.save(self._known, call, self._next_step)
        if call.kind == "save_for_sampler":
            self._next_step += 1
        anchor = Anchor(saved.digest, call.seq, saved.has_optimizer) if saved.is_anchor else None
        return CallResult(usage=self._usage(), saved=saved, anchor=anchor)

    def _load(self, call: RunCall) -> CallResult:
        digest, with_optimizer = call.options["digest"], bool(call.options["optimizer"])
        self._engines.need_learners()
        state, self.state = self._known, None  # if it fails, the state before is made again
        self._training.open(digest, fresh_optimizer=not with_optimizer)
        state.has_gradient, state.failed_seq = False, None
        self.state = state
        return replace(
            load_result(self.run, call), usage=self._usage(), anchor=Anchor(digest, call.seq, with_optimizer)
        )

    def _refuse(self, call: RunCall, message: str, category: Category) -> None:
        """Record that a call has failed. The learners' state has none of its effects."""
        self._store.refuse(self.run, call, message, category)
        self._parts.counted.ended(call.kind, f"{category}_error")
        logger.info("Call %d (%s) of run %s failed: %s", call.seq, call.kind, self.run.id, message)
        state = self.state
        if state is None:
            return
        state.seq = call.seq
        if call.kind == "optim_step":
            state.has_gradient, state.failed_seq = False, None
        elif call.kind in GRADIENT_KINDS and state.failed_seq is None:
            state.failed_seq = call.seq

    def _begin_anchor(self, state: RunState) -> None:
        try:
            self._anchors.after_step(state)
        except ENDS_THE_CLAIM:
            raise
        except ClusterError as error:
            logger.warning("Run %s has no anchor after call %d: %s", self.run.id, state.seq, error)
            self._forget()

    def _usage(self, trained_tokens: int = 0, scored_tokens: int = 0) -> CallUsage:
        seconds = (self._training.seconds - self._seconds) * self._training.num_learners
        return CallUsage(trained_tokens, scored_tokens, seconds)

    def _forget(self) -> None:
        """Let the learners forget the state, which may have an effect that isn't recorded."""
        self._expected = set()
        self.state = None
        self._training.forget()

    def _on_wait(self) -> None:
        self._stop.check_grace()

    def _on_wait_turn(self) -> None:
        """Show what the call waits for. An exception here costs nothing: no learner works for this run."""
        self._lease.check_held()
        if self._stop.is_requested:
            raise ServiceStopsError("The service was stopped. The run's calls continue when it runs again.")
        self._show_waiting(self._parts.learners.waiting_for or "The learners work for other models.")

    def _show_waiting(self, reason: str | None) -> None:
        if reason != self._shown:
            self._shown = reason
            with suppress(LeaseLostError):
                self._store.report_waiting(self.run, reason)


def _incomplete(seq: int, failed_seq: int) -> str:
    return (
        f"optim_step (call {seq}) wasn't taken: call {failed_seq} of its batch failed, so the accumulated gradient was "
        f"incomplete and has been discarded. Send the whole batch again, then optim_step; the error of call "
        f"{failed_seq} says why it failed."
    )
