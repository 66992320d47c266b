"""A claimed run on the learners: its state, made again where it was lost, and the effects of its calls."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from tandem.cluster.calls.call import Anchor, CallResult, CallUsage, ClaimedRun, RunCall
from tandem.cluster.calls.parts import CallParts
from tandem.cluster.calls.replay import GRADIENT_KINDS, replay_of
from tandem.cluster.calls.results import load_result, output_result, step_result
from tandem.cluster.calls.run_state import RunState
from tandem.cluster.calls.saving import Saving
from tandem.cluster.calls.sleeping_engines import SleepingEngines
from tandem.cluster.errors import StageError
from tandem.cluster.learners.run_training import RunTraining
from tandem.cluster.processes.waiting import OnWait
from tandem.rl.errors import RLError
from tandem.rl.settings import AdamStep

logger = logging.getLogger(__name__)
NUM_EXPECTED = 2
"""Bodies of following calls that learners read ahead."""
EXPECTED_KEPT = 8
SAVES = ("save_weights", "save_for_sampler")


class IncompleteBatchError(RLError, ValueError):
    """An optimizer step whose accumulated gradient lacks that of a failed call."""


class _Spent(NamedTuple):
    """Readings of clocks, in seconds."""

    seconds: float = 0.0
    learner_seconds: float = 0.0
    """In which the run had the learners."""
    cpu_seconds: float = 0.0
    """Of this thread."""


class RunWork:
    """Executes calls of a run, and knows what the learners hold of it. Nothing here is recorded.

        work = RunWork(run, parts, on_wait, on_wait_turn, state)
        if not work.is_ready:
            work.rebuild(anchor, calls)
        work.pass_over(ended)
        result = work.execute(call)
        ...                             # record it
        work.answered(call, result)

    RLErrors of `execute` are the client's to solve, and then `failed` follows instead. After any other error, the
    learners may have an effect that isn't recorded: call `forget`.
    """

    def __init__(
        self,
        run: ClaimedRun,
        parts: CallParts,
        on_wait: OnWait,
        on_wait_turn: OnWait,
        state: RunState | None,
    ):
        """`on_wait` is called while learners work, `on_wait_turn` while others use them. `state`: see `state`."""
        self.state = state
        """What the learners hold, as far as is known; None for nothing."""
        self.training = state.training if state else RunTraining(parts.learners, run.id, run.model_id)
        self.training.called_by(on_wait, on_wait_turn)
        self.engines = SleepingEngines(parts.asleep, on_wait_turn, self.training.free_memory)
        self._run, self._parts = run, parts
        self._saving = Saving(run, parts.artifacts, self.engines, parts.agreement, on_wait_turn)
        self._expected: list[str] = []
        self._before = _Spent()

    @property
    def is_ready(self) -> bool:
        """Whether the learners hold the run's state, as far as is known."""
        if self.state is not None and not self.training.is_held:
            self.forget()
        return self.state is not None

    def forget(self) -> None:
        """Let the learners forget the state."""
        self.state, self._expected = None, []
        self.training.forget()

    def begin(self) -> None:
        """Count what the next call uses from here on."""
        self._before = self._spent()

    def expect(self, body_keys: Iterable[str | None]) -> None:
        """Let the learners read the first of these bodies ahead."""
        keys = [key for key in islice(filter(None, body_keys), NUM_EXPECTED) if key not in self._expected]
        if keys and self.training.expect(keys):
            self._expected = [*keys, *self._expected[:EXPECTED_KEPT]]

    def rebuild(self, anchor: Anchor, calls: Sequence[RunCall]) -> None:
        """Make the run's state again, from its anchor and the calls that have ended since."""
        began = time.monotonic()
        replay = replay_of(calls)
        try:
            self.training.open(anchor.digest, fresh_optimizer=not anchor.has_optimizer)
            for index, call in enumerate(replay.calls, start=1):
                self.expect(later.body_key for later in replay.calls[index:])
                self._repeat(call)
        except (RLError, OSError) as error:
            raise StageError(
                "replay",
                f"the run's state can't be made again from checkpoint {anchor.digest[:12]} and its calls: {error}.",
                "Load a checkpoint of it: that needs no state before it.",
                retryable=isinstance(error, OSError),  # a body may just have been replaced by a later anchor
            ) from error
        seq = calls[-1].seq if calls else anchor.seq
        self.state = RunState(
            *(self.training, seq, replay.has_gradient, replay.failed_seq, replay.num_steps, replay.num_bytes)
        )
        if replay.calls:
            logger.info(
                "Made the state of run %s again from call %d to %d, with %d calls, in %.3f s",
                *(self._run.id, anchor.seq, seq, len(replay.calls), time.monotonic() - began),
            )

    def begin_anew(self) -> None:
        """Have a state to which a load_weights is the next call. The learners need none before it."""
        self.state = RunState(self.training, 0)

    def _repeat(self, call: RunCall) -> None:
        if call.kind == "forward_backward":
            assert call.body_key is not None
            self.training.accumulate(call.body_key, call.num_bytes)
        elif call.kind == "optim_step":
            self.training.apply_adam(AdamStep(**call.options))
        elif call.kind == "load_weights":
            self.training.open(call.options["digest"], fresh_optimizer=not call.options["optimizer"])

    def pass_over(self, ended: Sequence[RunCall]) -> None:
        """Account for calls that failed before they could be executed."""
        state = self._known
        for call in ended:
            if call.kind == "optim_step":
                self._discard(state)
            elif call.kind in GRADIENT_KINDS and state.failed_seq is None:
                state.failed_seq = call.seq

    def execute(self, call: RunCall) -> CallResult:
        """Return the answer of a call, whose effect the state has from now on."""
        match call.kind:
            case "forward_backward" | "forward":
                return self._forward(call)
            case "optim_step":
                return self._step(call)
            case "save_weights" | "save_for_sampler":
                return self._save(call)
            case "load_weights":
                return self._load(call)
            case _:
                raise AssertionError(f"{call.kind} can't be executed")

    def answered(self, call: RunCall, result: CallResult) -> None:
        """Account for a call whose answer has been recorded."""
        self._known.seq = call.seq
        if result.anchor is not None:
            self._known.anchored()

    def failed(self, call: RunCall) -> None:
        """Account for a call that was recorded as failed. It has no effect, but an optim_step ends its batch."""
        state = self.state
        if state is None:
            return
        state.seq = call.seq
        if call.kind == "optim_step":
            state.has_gradient, state.failed_seq = False, None
        elif call.kind in GRADIENT_KINDS and state.failed_seq is None:
            state.failed_seq = call.seq

    def _forward(self, call: RunCall) -> CallResult:
        assert call.body_key is not None, f"call {call.seq} has no body"
        self.engines.need_learners()
        is_forward_only = call.kind == "forward"
        output = self.training.accumulate(call.body_key, call.num_bytes, is_forward_only)
        if is_forward_only:
            return output_result(output, self.usage(scored_tokens=output.num_tokens))
        self._known.has_gradient = True
        self._known.num_bytes += call.num_bytes
        self._parts.counted.trained(output.num_tokens)
        return output_result(output, self.usage(trained_tokens=output.num_tokens))

    def _step(self, call: RunCall) -> CallResult:
        self.engines.need_learners()
        failed_seq = self._known.failed_seq
        if failed_seq is not None:
            self._discard(self._known)
            raise IncompleteBatchError(_incomplete(call.seq, failed_seq))
        try:
            metrics = self.training.apply_adam(AdamStep(**call.options))
        finally:
            self._known.has_gradient = False
        self._known.num_steps += 1
        return step_result(metrics, self.usage())

    def _save(self, call: RunCall) -> CallResult:
        saved = self._saving.save(self._known, call, self._parts.store.check_save(self._run, call))
        anchor = Anchor(saved.digest, call.seq, saved.has_optimizer) if saved.is_anchor else None
        return CallResult(usage=self.usage(), saved=saved, anchor=anchor)

    def _load(self, call: RunCall) -> CallResult:
        digest, with_optimizer = call.options["digest"], bool(call.options["optimizer"])
        self.engines.need_learners()
        state, self.state = self._known, None  # if it fails, the state before is made again
        self.training.open(digest, fresh_optimizer=not with_optimizer)
        state.has_gradient, state.failed_seq = False, None
        self.state = state
        return replace(
            load_result(self._run, call), usage=self.usage(), anchor=Anchor(digest, call.seq, with_optimizer)
        )

    def _discard(self, state: RunState) -> None:
        if state.has_gradient:
            self.training.discard_gradient()
        state.has_gradient, state.failed_seq = False, None

    def usage(self, trained_tokens: int = 0, scored_tokens: int = 0) -> CallUsage:
        """Return what the present call has used so far, in all of its tries."""
        now, before = self._spent(), self._before
        return CallUsage(
            trained_tokens,
            scored_tokens,
            seconds=now.seconds - before.seconds,
            learner_seconds=(now.learner_seconds - before.learner_seconds) * self.training.num_learners,
            cpu_seconds=now.cpu_seconds - before.cpu_seconds,
        )

    def _spent(self) -> _Spent:
        return _Spent(time.monotonic(), self.training.seconds, time.thread_time())

    @property
    def _known(self) -> RunState:
        assert self.state is not None, "a call is executed with a state"
        return self.state


def _incomplete(seq: int, failed_seq: int) -> str:
    return (
        f"optim_step (call {seq}) wasn't taken: call {failed_seq} of its batch failed, so the accumulated gradient was "
        f"incomplete and has been discarded. Send the whole batch again, then optim_step; the error of call "
        f"{failed_seq} says why it failed."
    )
