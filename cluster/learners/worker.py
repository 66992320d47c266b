"""One learner process: beside training jobs, it executes calls of runs, whose gradients stay between calls."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import BaseModelConfig, TinkerConfig
from tandem.cluster.learners.job_worker import JobWorker
from tandem.cluster.learners.shards import shard_by_tokens
from tandem.cluster.learners.states.kept_states import in_main_memory
from tandem.cluster.placement import Placement
from tandem.cluster.telemetry.context import Ids
from tandem.cluster.telemetry.setup import Telemetry
from tandem.rl.errors import RLError

if TYPE_CHECKING:
    from tandem.rl.datums.datum import Call
    from tandem.rl.datums.rows import DatumRow
    from tandem.rl.errors import StepError
    from tandem.rl.learner import SuspendedTraining
    from tandem.rl.settings import AdamStep

logger = logging.getLogger(__name__)
MAX_EXPECTED = 8
"""Bodies that are read ahead at once; further ones replace the oldest."""
COPIES = 4
"""Of the adapter's size in a run's state: the adapter, two moments and the gradient."""


@dataclass(frozen=True)
class NotHeld:
    """The answer of a learner that doesn't have the run's state any more."""


@dataclass(frozen=True)
class RankOutput:
    """The outputs of one learner's share of a call, in few objects, which travel fast."""

    datums: tuple[int, ...]
    """Their indices in the call."""
    shapes: tuple[tuple[int, ...], ...]
    """(N,) or (N, K) for each."""
    logprobs: NDArray[np.float32]
    """Of all datums, one after the other."""
    sums: dict[str, float] = field(default_factory=dict)
    num_tokens: int = 0
    """Of the rows."""
    seconds: float = 0.0


@dataclass(frozen=True)
class _Read:
    """A body in this learner's rows."""

    call: Call
    rows: list[DatumRow]


class LearnerWorker(JobWorker):
    """Rank `rank` of a learner group, for jobs and runs. A Ray actor in production, a plain object in tests.

        worker.open_run(run, digest)
        output = worker.accumulate(run, body_key)
        metrics = worker.apply_adam(run, step)
        fault = worker.finish_run(run, save)       # then `seal` and `write` of this name, beside other calls

    All ranks get the same calls of runs in the same order. So all hold the same runs: where memory for another one is
    missing, each forgets the run that was used longest ago, and answers NotHeld from then on.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        base: BaseModelConfig,
        artifacts_root: str,
        telemetry: Telemetry | None = None,
        tinker: TinkerConfig | None = None,
        placement: Placement | None = None,
    ):
        """See `JobWorker`. `tinker` limits the memory of runs."""
        super().__init__(rank, world_size, base, artifacts_root, telemetry, placement)
        self._limits = tinker or TinkerConfig()
        self._runs: OrderedDict[str, int] = OrderedDict()
        """The bytes of the runs that are held, the one used longest ago first."""
        self._expected: OrderedDict[str, Future[_Read]] = OrderedDict()
        self._reading = threading.Lock()  # guards it

    def open_run(
        self, run: str, digest: str, fresh_optimizer: bool = False, ids: Ids | None = None
    ) -> RLError | OSError | None:
        """Begin or continue a run with a checkpoint's state, and without an accumulated gradient.

        Return the error of a checkpoint that is missing, damaged, or has LoRA settings beyond the limits.
        """
        try:
            refused: RLError | OSError | None = self.load(digest, run, fresh_optimizer, ids)
        except (RLError, OSError) as error:
            if self._base.learners.shard > 1:  # the others wait in the middle of the probe
                raise
            refused = error
        if refused is None:
            parameters = self._learner.policy.parameters.values()
            self._runs[run] = COPIES * sum(parameter.numel() * parameter.element_size() for parameter in parameters)
            self._forget_oldest(run)
        return refused

    def accumulate(
        self, run: str, body_key: str, forward_only: bool = False
    ) -> RankOutput | RLError | OSError | NotHeld:
        """Compute this rank's share of a call, and add its gradient to the run's, unless `forward_only`.

        The error of a call that can't be computed is returned; this rank's gradient is then as before.
        """
        if not self._use(run):
            return NotHeld()
        try:
            read = self._take(body_key)
        except (RLError, OSError) as error:
            return error
        self._activate(run)
        self._meter.begin()
        began = time.perf_counter()
        call, rows = read.call, read.rows
        with self._for_job(run, "forward" if forward_only else "forward and backward"), self._in_step():
            try:
                outputs = self._learner.accumulate(rows, call.loss, call.options, forward_only)
            except RLError as error:
                if self._base.learners.shard > 1:  # the others wait in the middle of a row
                    raise
                return error
        seconds = time.perf_counter() - began
        if not forward_only:
            self._meter.end([row.row for row in rows], seconds)
        found = list(outputs.logprobs.values())
        flat = [own.numpy().reshape(-1) for own in found]
        return RankOutput(
            datums=tuple(outputs.logprobs),
            shapes=tuple(tuple(own.shape) for own in found),
            logprobs=np.concatenate(flat) if flat else np.empty(0, np.float32),
            sums=dict(outputs.sums),
            num_tokens=sum(row.num_tokens for row in rows),
            seconds=seconds,
        )

    def expect(self, body_key: str) -> None:
        """Read and pack a body for an `accumulate` that will follow. Called beside other work."""
        with self._reading:
            if body_key in self._expected:
                return
            reading: Future[_Read] = Future()
            self._expected[body_key] = reading
            while len(self._expected) > MAX_EXPECTED:
                self._expected.popitem(last=False)
        try:
            reading.set_result(self._read(body_key))
        except Exception as error:
            reading.set_exception(error)

    def _take(self, body_key: str) -> _Read:
        with self._reading:
            reading = self._expected.pop(body_key, None)
        return reading.result() if reading else self._read(body_key)

    def _read(self, body_key: str) -> _Read:
        from tandem.cluster.calls.wire.forward_backward import body_content, read_forward_backward
        from tandem.rl.batch import default_packed_length
        from tandem.rl.datums.rows import pack_datums

        body = body_content(self._artifacts.read_blob(body_key), self._limits.max_call_bytes)
        call = read_forward_backward(body).call
        policy = self._learner.policy
        longest = max(datum.num_tokens for datum in call.datums)
        length = default_packed_length(longest, self._max_model_len, policy.device.type)
        rows = pack_datums(call.datums, length, policy.shares_prefixes)
        return _Read(call, shard_by_tokens(rows, self._world_size)[self._rank])

    def apply_adam(self, run: str, step: AdamStep) -> dict[str, float] | StepError | NotHeld:
        """Take an optimizer step with what all ranks have accumulated. All return the same metrics.

        The error of a gradient that isn't finite is returned. The gradient is gone in both cases.
        """
        from tandem.rl.errors import StepError

        if not self._use(run):
            return NotHeld()
        self._activate(run).digest = None
        with self._for_job(run, "optimizer step"), self._in_step():
            try:
                return self._learner.apply_adam(step)
            except StepError as error:
                return error

    def discard_gradient(self, run: str) -> NotHeld | None:
        """Forget what the run has accumulated."""
        if not self._use(run):
            return NotHeld()
        self._activate(run)
        self._learner.discard_gradient()
        return None

    def finish_run(self, run: str, save: str) -> StepError | NotHeld | None:
        """Hold the run's present state ready for `write` under the name `save`, on rank 0. The run continues.

        Return why the state can't be used, or None if it can.
        """
        if not self._use(run):
            return NotHeld()
        self._ids[save] = self._ids.get(run, {})
        return self.finish(run, save)

    def drop(self, job: str) -> None:
        super().drop(job)
        self._runs.pop(job, None)

    @cached_property
    def _max_model_len(self) -> int:
        return ResolvedBaseModel(self._base).max_model_len

    def _use(self, run: str) -> bool:
        """Return whether the run is held, and note its use."""
        if run not in self._runs:
            return False
        self._runs.move_to_end(run)
        return True

    def _forget_oldest(self, used: str) -> None:
        self._runs.move_to_end(used)
        while len(self._runs) > 1 and sum(self._runs.values()) > self._limits.kept_run_bytes:
            oldest = next(iter(self._runs))
            logger.info("Forgot the state of run %s, to have memory for others", oldest)
            self.drop(oldest)

    def _set_aside(self) -> None:
        super()._set_aside()
        if self._learner.policy.device.type == "cpu":
            return
        total = 0
        for run in reversed(self._runs):
            suspended = self._sessions[run].suspended
            total += self._runs[run]
            if suspended is not None and total > self._limits.kept_run_device_bytes:
                self._sessions[run].suspended = _in_main_memory(suspended)


def _in_main_memory(training: SuspendedTraining) -> SuspendedTraining:
    gradient = None if training.gradient is None else training.gradient.cpu()
    return replace(training, state=in_main_memory(training.state), gradient=gradient)
