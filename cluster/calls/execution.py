"""Executes the calls of one claimed run in their order, and answers each."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from tandem.cluster.calls.call import Category, ClaimedRun, RunCall
from tandem.cluster.calls.parts import CallParts
from tandem.cluster.calls.run_state import RunState
from tandem.cluster.calls.run_work import SAVES, RunWork
from tandem.cluster.calls.saving import AnchorWriter, Bodies
from tandem.cluster.errors import (
    ClusterError,
    LearnersLostError,
    LeaseLostError,
    ServiceStopsError,
    StageError,
    StoreUnavailableError,
)
from tandem.cluster.jobs.lease import LeaseKeeper
from tandem.cluster.jobs.running_job import ServiceStop
from tandem.rl.errors import RLError

logger = logging.getLogger(__name__)
MAX_LOSSES = 50
"""Times that a call begins again because the learners ended during other work, or forgot the run."""
PAUSE_S = 0.2
"""Before the second try; longer before the next."""
ENDS_THE_CLAIM = (LeaseLostError, ServiceStopsError, StoreUnavailableError)


class RunExecution:
    """One claim of a run, in a thread of its own.

    A call takes effect in one transaction, its answer. Whatever ends the execution before leaves it unanswered, and the
    next claim executes it again, from the anchor or from a state without its effect.
    """

    def __init__(
        self, run: ClaimedRun, parts: CallParts, lease: LeaseKeeper, stop: ServiceStop, state: RunState | None = None
    ):
        """`state`: what the learners may still hold since an earlier claim."""
        self.run = run
        self._parts, self._store, self._lease, self._stop = parts, parts.store, lease, stop
        self._work = RunWork(run, parts, self._on_wait, self._on_wait_turn, state)
        self._bodies = Bodies(parts.artifacts)
        self._anchors = AnchorWriter(run, self._store, self._bodies, parts.limits)
        self._wake = threading.Event()
        self._must_give_way = False
        self._shown: str | None = None

    @property
    def state(self) -> RunState | None:
        """What the learners hold of the run; None for nothing."""
        return self._work.state

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
                self._work.engines.need_engines()
                remaining = idle_since + self._parts.limits.idle_s - time.monotonic()
                if self._must_give_way or not self._wake.wait(max(0.0, remaining)):
                    return
        except BaseException:
            self._work.forget()
            raise
        finally:
            self._work.engines.need_engines()
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
            self._work.expect(later.body_key for later in calls[index + 1 :] if later.outcome is None)
            self._execute(call, ended)
            ended = []
            num_executed += 1
        return num_executed

    def _execute(self, call: RunCall, ended: Sequence[RunCall]) -> None:
        """Execute a call to its end. `ended`: the failed ones between it and the one before."""
        began = time.monotonic()
        self._work.begin()
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
                self._work.forget()
                num_losses += 1
                if num_losses > MAX_LOSSES:
                    self._refuse(call, f"{error} That happened {num_losses} times. Send the call again.", "server")
                    break
            except (StageError, OSError) as error:
                self._work.forget()
                num_tries += 1
                is_final = isinstance(error, StageError) and not error.retryable
                logger.warning("Call %d of run %s, try %d: %s", call.seq, self.run.id, num_tries, error)
                if is_final or num_tries >= self._parts.settings.max_attempts:
                    self._refuse(call, f"{error} (try {num_tries} of {self._parts.settings.max_attempts})", "server")
                    break
                self._parts.counted.repeated(call.kind)
                time.sleep(PAUSE_S * num_tries)
            except Exception as error:
                logger.exception("Call %d of run %s failed", call.seq, self.run.id)
                self._work.forget()
                said = f"Unexpected {type(error).__name__}: {error}. The coordinator's log has the traceback."
                self._refuse(call, said, "server")
                break
        self._show_waiting(None)
        if self.state is not None and call.kind == "optim_step":
            self._begin_anchor(self.state)

    def _try(self, call: RunCall, ended: Sequence[RunCall]) -> None:
        work = self._work
        if work.is_ready:
            work.pass_over(ended)
            return self._answer(call)
        if call.kind == "load_weights":
            work.begin_anew()
            return self._answer(call)
        work.engines.need_learners()
        anchor, calls = self._store.answered_since_anchor(self.run)
        with work.training.together(sum(past.num_bytes for past in (*calls, call))):
            work.rebuild(anchor, calls)
            work.pass_over(ended)
            if call.kind not in SAVES:  # which need the engines, and others may have the learners meanwhile
                return self._answer(call)
        self._answer(call)

    def _answer(self, call: RunCall) -> None:
        result = self._work.execute(call)
        self._bodies.delete(self._store.answer(self.run, call, result))
        self._work.answered(call, result)

    def _refuse(self, call: RunCall, message: str, category: Category) -> None:
        """Record that a call has failed. The learners' state has none of its effects."""
        self._store.refuse(self.run, call, message, category, self._work.usage())
        self._parts.counted.ended(call.kind, f"{category}_error")
        logger.info("Call %d (%s) of run %s failed: %s", call.seq, call.kind, self.run.id, message)
        self._work.failed(call)

    def _begin_anchor(self, state: RunState) -> None:
        try:
            self._anchors.after_step(state)
        except ENDS_THE_CLAIM:
            raise
        except ClusterError as error:
            logger.warning("Run %s has no anchor after call %d: %s", self.run.id, state.seq, error)
            self._work.forget()

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
