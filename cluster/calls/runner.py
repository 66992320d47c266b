"""Claims the runs of a base model that have calls to execute, and executes several of them by turns."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

from tandem.cluster.calls.call import ClaimedRun
from tandem.cluster.calls.execution import RunExecution
from tandem.cluster.calls.parts import CallParts
from tandem.cluster.calls.run_state import RunStates
from tandem.cluster.errors import ClusterError, LeaseLostError, ServiceStopsError
from tandem.cluster.jobs.lease import LeaseKeeper
from tandem.cluster.jobs.running_job import ServiceStop
from tandem.cluster.telemetry.context import logged_with

logger = logging.getLogger(__name__)
BUSY_POLL_S, CALM_POLL_S = 0.003, 0.1
"""How often the store's mark is looked at, which takes 20 microseconds: while calls arrive, and otherwise."""
BUSY_S = 30.0
"""Since the last call, for the former."""
QUERY_S = 0.01
"""How often the store is asked for calls while they arrive, where it has no mark."""
GAPS_S = 1.0
"""How often calls that miss an earlier one are looked for."""


class CallRunner:
    """Executes the calls of all runs of one base model, in the turns that its learners also give to jobs.

    runner = CallRunner(base_model, parts)
    runner.run()              # in a thread, until another one calls `stop`
    """

    def __init__(self, base_model: str, parts: CallParts):
        self._name, self._parts, self._store = base_model, parts, parts.store
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._stop = ServiceStop(parts.settings.stop_grace_s)
        self._states = RunStates()
        self._running: dict[str, RunExecution | None] = {}
        """None while an execution begins."""
        self._look = threading.Event()  # there may be a run to claim
        self._busy_until = self._next_gaps = 0.0
        self.last_error: str | None = None

    def run(self) -> None:
        """Execute calls until `stop`. A failure of the store is logged and shown in `last_error`, then retried."""
        with ThreadPoolExecutor(self._parts.limits.runs_at_once, thread_name_prefix=f"runs of {self._name}") as pool:
            while not self._stop.is_requested:
                self._look.clear()
                mark = self._store.change_mark()
                try:
                    self._distribute(pool)
                    self.last_error = None
                except Exception as error:
                    self._log(error)
                    mark = object() if mark is None else mark  # pause as after a look without a result
                self._wait_for_change(mark)

    def stop(self) -> None:
        """Claim no more runs. A call that is executed may continue for `stop_grace_s`, others stay unanswered."""
        self._stop.request()
        self._look.set()
        for execution in list(self._running.values()):
            if execution is not None:
                execution.wake()

    @property
    def running_runs(self) -> list[str]:
        """The ids of the runs that are claimed, the oldest claim first."""
        return list(self._running)

    def _distribute(self, pool: ThreadPoolExecutor) -> None:
        """Wake executions whose run has calls, and claim other runs that have some."""
        now = time.monotonic()
        if now >= self._next_gaps:
            self._next_gaps = now + GAPS_S
            self._store.fail_gaps(self._name)
        ready = self._store.ready_runs(self._name)
        if ready:
            self._busy_until = now + BUSY_S
        running = dict(self._running)
        for run_id in ready:
            if execution := running.get(run_id):
                execution.wake()
        num_waiting = len(set(ready) - running.keys())
        for _ in range(min(num_waiting, self._parts.limits.runs_at_once - len(running))):
            claim = self._store.claim_run(self._name, self._owner, self._parts.settings.lease_s)
            if claim is None:  # another coordinator has them
                return
            num_waiting -= 1
            self._running[claim.id] = None
            pool.submit(self._run_or_log, claim)
        if num_waiting > 0:
            for execution in running.values():
                if execution is not None:
                    execution.give_way()

    def _wait_for_change(self, mark: object | None) -> None:
        """Return when the store has changed since `mark`, when a run was given back, or after `poll_s`."""
        is_busy = time.monotonic() < self._busy_until
        poll_s = BUSY_POLL_S if is_busy else CALM_POLL_S
        longest = self._parts.settings.poll_s if mark is not None or not is_busy else QUERY_S
        end = time.monotonic() + longest
        while (remaining := end - time.monotonic()) > 0:
            if self._look.wait(remaining if mark is None else min(poll_s, remaining)):
                return
            if mark is not None and self._store.change_mark() != mark:
                return

    def _run_or_log(self, run: ClaimedRun) -> None:
        try:
            with logged_with(model_id=run.model_id):
                self._run(run)
        except Exception as error:
            self._log(error)
        finally:
            self._running.pop(run.id, None)
            self._look.set()

    def _run(self, run: ClaimedRun) -> None:
        state = self._states.take(run.id, run.applied_seq)
        logger.info("Claimed run %s, attempt %d, after call %d", run.id, run.attempt, run.applied_seq)
        lease_s = self._parts.settings.lease_s
        with LeaseKeeper(lambda: self._store.renew(run, lease_s), lease_s, f"run {run.id}") as lease:
            execution = self._running[run.id] = RunExecution(run, self._parts, lease, self._stop, state)
            try:
                execution.work()
            except LeaseLostError as error:
                self._parts.counted.lost_lease()
                logger.warning("Run %s was given up: %s", run.id, error)
                return
            except ServiceStopsError as error:
                logger.info("Run %s is given back: %s", run.id, error)
            except ClusterError as error:
                self._log(error)
        if execution.state is not None:
            self._states.put(run.id, execution.state)
        self._store.release(run)
        logger.info("Gave run %s back", run.id)

    def _log(self, error: Exception) -> None:
        logger.error("The runner of calls of %s failed outside a call", self._name, exc_info=error)
        self.last_error = f"{type(error).__name__}: {error}"
