"""Logprob work shared between learners and engines: one queue of chunks, pulled by whoever is free."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tandem.cluster.config import LogprobsConfig
from tandem.cluster.errors import StageError
from tandem.cluster.logprobs.chunks import ChunkQueue, Kind, Task
from tandem.cluster.processes.waiting import WAIT_PERIOD_S, OnWait, wait_on
from tandem.cluster.telemetry.context import in_this_context

if TYPE_CHECKING:
    from torch import Tensor

    from tandem.rl.packing import PackedSequence

Score = Callable[[Sequence["PackedSequence"], float], list["Tensor"]]
"""Takes packed rows and a timeout in seconds. Returns the token-aligned float32 logprobs [T] of each row, NaN at the
first token of each segment. May block, and may raise anything; a scorer that has raised isn't called again."""

logger = logging.getLogger(__name__)
MAX_ENGINE_WORK = 2.0
"""Measured on 2 cores, one learner and one engine (benchmarks/logprob_sharing.py): sharing is 1.6 times as fast as the
learner alone where an engine computes as many tokens as it, and 0.7 times where it computes 4.5 times as many."""


@dataclass(frozen=True)
class ScoreReport:
    """The shares of learners and engines in a scoring, and how well they agreed. Reports can be added."""

    learner_tokens: int = 0
    engine_tokens: int = 0
    seconds: float = 0.0
    num_compared: int = 0
    """Trained tokens that both scored."""
    abs_diff_sum: float = 0.0
    abs_diff_max: float = 0.0
    num_discarded: int = 0
    """Tokens scored by the engine whose results were not used, because the two disagreed."""

    def __add__(self, other: ScoreReport) -> ScoreReport:
        return ScoreReport(
            learner_tokens=self.learner_tokens + other.learner_tokens,
            engine_tokens=self.engine_tokens + other.engine_tokens,
            seconds=self.seconds + other.seconds,
            num_compared=self.num_compared + other.num_compared,
            abs_diff_sum=self.abs_diff_sum + other.abs_diff_sum,
            abs_diff_max=max(self.abs_diff_max, other.abs_diff_max),
            num_discarded=self.num_discarded + other.num_discarded,
        )

    def metrics(self) -> dict[str, float]:
        """Return the report under the names of the wire. Shares are of the tokens scored; the sample counts twice."""
        num_tokens = self.learner_tokens + self.engine_tokens
        metrics = {"logprobs/seconds": self.seconds}
        if num_tokens:
            metrics["logprobs/learner_share"] = self.learner_tokens / num_tokens
            metrics["logprobs/engine_share"] = self.engine_tokens / num_tokens
        if self.num_compared:
            metrics["logprobs/engine_learner_abs_diff_mean"] = self.abs_diff_sum / self.num_compared
            metrics["logprobs/engine_learner_abs_diff_max"] = self.abs_diff_max
        return metrics


@dataclass(frozen=True)
class LogprobPool:
    """Scores packed rows with learners and engines together.

        pool = LogprobPool(config.logprobs, config.logprob_tolerance, deadlines.score_s)
        logprobs, report = pool.score(rows, learners, engines)

    Every scorer has a thread, which pulls a chunk when it is free. Another scorer takes over the chunk of one that is
    slow or has failed. A sample is scored by both kinds; where a trained token's logprobs differ by more than
    `tolerance`, the engines' results are discarded and learners score those rows again.
    """

    settings: LogprobsConfig
    tolerance: float
    deadline_s: float

    def uses_engines(self, rows: Sequence[PackedSequence]) -> bool:
        """Return whether engines would score these rows beside the learners."""
        mode = self.settings.mode
        return mode != "learner" and (mode != "auto" or engine_work(rows) <= MAX_ENGINE_WORK)

    def score(
        self,
        rows: Sequence[PackedSequence],
        learners: Sequence[Score],
        engines: Sequence[Score],
        on_wait: OnWait = wait_on,
    ) -> tuple[list[Tensor], ScoreReport]:
        """Return the logprobs of every row, in order. Raise StageError when no scorer is left, or at the deadline."""
        if not self.uses_engines(rows):
            engines = ()
        run = _Run(self, rows, learners, engines)
        return run.to_its_end(on_wait)


@dataclass
class _Run:
    """One scoring. `changed` guards its state; threads that outlive it see `is_over` and end."""

    pool: LogprobPool
    rows: Sequence[PackedSequence]
    learners: Sequence[Score]
    engines: Sequence[Score]
    changed: threading.Condition = field(default_factory=threading.Condition)
    is_over: bool = False
    report: ScoreReport = ScoreReport()
    errors: list[tuple[str, Exception]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.working: dict[str, Kind] = {}
        scorers: dict[str, Score] = {}
        for kind, scores in ((Kind.LEARNER, self.learners), (Kind.ENGINE, self.engines)):
            for number, score in enumerate(scores):
                scorers[f"{kind.value} {number}"] = score
                self.working[f"{kind.value} {number}"] = kind
        assert scorers, "there is nothing to score with"
        self.queue = ChunkQueue(self.rows, list(self.working.values()), self.pool.settings)
        self.threads = [
            threading.Thread(
                target=in_this_context(self._pull),
                args=(name, self.working[name], score),
                name=f"score-{name}",
                daemon=True,
            )
            for name, score in scorers.items()
        ]

    def to_its_end(self, on_wait: OnWait) -> tuple[list[Tensor], ScoreReport]:
        for thread in self.threads:
            thread.start()
        try:
            while True:
                with self.changed:
                    if self.queue.is_done:
                        return self._results(), self._final_report()
                    self._check()
                    self.changed.wait(WAIT_PERIOD_S)
                on_wait()
        finally:
            with self.changed:
                self.is_over = True
                self.changed.notify_all()

    def _pull(self, name: str, kind: Kind, score: Score) -> None:
        """Score chunks until none is left, in the scorer's thread."""
        while (task := self._next(name, kind)) is not None:
            rows = [self.rows[index] for index in task.rows]
            try:
                results = score(rows, max(0.0, self.began + self.pool.deadline_s - time.monotonic()))
                _check_results(rows, results)
            except Exception as error:
                self._retire(name, kind, task, error)
                return
            with self.changed:
                if self.queue.finish(task, name, kind, results, time.monotonic()):
                    self._compare(task)
                self.changed.notify_all()

    def _next(self, name: str, kind: Kind) -> Task | None:
        """Wait for a task and return it, or None when the scoring is over."""
        with self.changed:
            while not self.is_over:
                if task := self.queue.take(name, kind, time.monotonic()):
                    return task
                self.changed.wait(WAIT_PERIOD_S)
            return None

    def _retire(self, name: str, kind: Kind, task: Task, error: Exception) -> None:
        with self.changed:
            if not self.is_over:
                logger.warning("Scorer %s of logprobs failed; others take over", name, exc_info=error)
            self.errors.append((name, error))
            del self.working[name]
            self.queue.give_back(task, name)
            # Engines that disagreed don't take over from learners that died.
            if self.working and kind not in self.working.values() and not self.report.num_discarded:
                self.queue.end_kind(kind)
            self.changed.notify_all()

    def _compare(self, task: Task) -> None:
        """Compare the results of a chunk that both kinds have scored; drop the engines if they differ too much."""
        if task.results is None or task.twin is None or task.twin.results is None:
            return
        trained = [self.rows[index].is_trained for index in task.rows]
        for mask, mine, twins in zip(trained, task.results, task.twin.results, strict=True):
            if mask.any():
                diff = (mine[mask].double() - twins[mask].double()).abs()
                self.report += ScoreReport(
                    num_compared=diff.numel(), abs_diff_sum=float(diff.sum()), abs_diff_max=float(diff.max())
                )
        if self.report.abs_diff_max > self.pool.tolerance and not self.report.num_discarded:
            self.report += ScoreReport(num_discarded=self.queue.end_kind(Kind.ENGINE, discard=True))

    def _check(self) -> None:
        """Raise StageError if no scorer is left or the deadline has passed."""
        possible = {kind for task in self.queue.tasks if not task.done_by for kind in task.kinds}
        if not possible & set(self.working.values()):
            name, error = self.errors[0]
            retryable = getattr(error, "retryable", not isinstance(error, ValueError))
            raise StageError(
                "score",
                f"all scorers of logprobs have failed; the first was {name}: {type(error).__name__}: {error}",
                "Check the logs of the learners and the engine.",
                retryable=retryable,
            ) from error
        if time.monotonic() - self.began > self.pool.deadline_s:
            num_open = sum(not task.done_by for task in self.queue.tasks)
            raise StageError(
                "score",
                f"{num_open} of {len(self.queue.tasks)} chunks had no logprobs after {self.pool.deadline_s:g} s.",
                "Raise deadlines.score_s if the work really takes this long; otherwise check the learners' logs "
                "(`ray logs`) and the machine's load.",
                retryable=True,
            )

    def _results(self) -> list[Tensor]:
        """Return one tensor per row, the learner's where both kinds scored it."""
        found: dict[int, Tensor] = {}
        for task in sorted(self.queue.tasks, key=lambda task: task.done_by is Kind.LEARNER):
            found.update(zip(task.rows, task.results or (), strict=True))
        return [found[index] for index in range(len(self.rows))]

    def _final_report(self) -> ScoreReport:
        return self.report + ScoreReport(
            learner_tokens=self.queue.tokens_by(Kind.LEARNER),
            engine_tokens=self.queue.tokens_by(Kind.ENGINE),
            seconds=time.monotonic() - self.began,
        )


def engine_work(rows: Sequence[PackedSequence]) -> float:
    """Return how many tokens an engine computes per token of a learner: it repeats a prefix for each sequence."""
    from tandem.rl.packing import unpack

    unpacked = sum(own.numel() for row in rows for own in unpack(row))
    return unpacked / max(1, sum(row.num_tokens for row in rows))


def _check_results(rows: Sequence[PackedSequence], results: Sequence[Tensor]) -> None:
    """Raise ValueError for results that can't be logprobs of these rows."""
    shapes = [(tuple(row.token_ids.shape), tuple(result.shape)) for row, result in zip(rows, results, strict=True)]
    if any(wanted != found for wanted, found in shapes):
        raise ValueError(f"Logprobs of the wrong length: (wanted, found) is {shapes}.")
    if not all(result[row.is_trained].isfinite().all() for row, result in zip(rows, results, strict=True)):
        raise ValueError("A trained token's logprob isn't finite.")
