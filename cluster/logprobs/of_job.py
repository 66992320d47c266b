"""Logprobs that a job needs before its first gradient step, from the learners and engines of its base model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tandem.cluster.errors import JobCancelledError, LearnersLostError
from tandem.cluster.logprobs.engine_scorer import EngineScore, engine_scorer
from tandem.cluster.logprobs.pool import LogprobPool, ScoreReport
from tandem.cluster.processes.waiting import OnWait

if TYPE_CHECKING:
    from torch import Tensor

    from tandem.cluster.learners.group import LearnerGroup
    from tandem.cluster.learners.training import Training
    from tandem.rl.packing import PackedSequence


def _uncharged(engine: EngineScore, job_id: str) -> EngineScore:
    return engine


@dataclass(frozen=True)
class JobLogprobs:
    """Scores packed rows with the learners and the engines of a base model together."""

    learners: LearnerGroup
    engines: Sequence[EngineScore]
    pool: LogprobPool
    charge: Callable[[EngineScore, str], EngineScore] = _uncharged
    """Returns an engine that charges its work to the job of this id."""

    def score(
        self, training: Training, digest: str, rows: Sequence[PackedSequence], chunk_size: int, on_wait: OnWait
    ) -> tuple[list[Tensor], ScoreReport]:
        """Return the token-aligned logprobs [T] of each row under a policy version, and who computed them.

        `training` is that of the job on these learners. They are stopped after a failure, because some may hang.
        After a cancellation they end the chunks in hand.
        """
        learners = training.scorers(digest, chunk_size)
        clock, engines = training.clock, []
        if self.engines and self.pool.uses_engines(rows):
            engines = [engine_scorer(self.charge(engine, clock.job_id), digest) for engine in self.engines]
        try:
            with clock.phase("score", without_learners=None if engines else "wait_turn"):
                logprobs, report = self.pool.score(rows, learners, engines, on_wait)
                clock.count(scored_tokens=report.learner_tokens, engine_scored_tokens=report.engine_tokens)
            return logprobs, report
        except (JobCancelledError, LearnersLostError):
            raise
        except BaseException:
            self.learners.stop()
            raise
