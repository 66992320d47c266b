"""The logprobs that a job needs before its first gradient step: old ones for the ratio, a reference's for the KL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tandem.cluster.jobs.job import ClaimedJob
from tandem.cluster.logprobs.engine_scorer import EngineScore, engine_scorer
from tandem.cluster.logprobs.pool import LogprobPool, ScoreReport
from tandem.rl.config import DEFAULT_LOGPROB_CHUNK_SIZE

if TYPE_CHECKING:
    from torch import Tensor

    from tandem.cluster.learners.group import LearnerGroup
    from tandem.rl.packing import PackedSequence

RESCORED = "logprobs_rescored"


@dataclass(frozen=True)
class JobLogprobs:
    """Computes them with the learners and the engines of a base model, and only those that the job asks for."""

    learners: LearnerGroup
    engines: Sequence[EngineScore]
    pool: LogprobPool

    def fill(
        self,
        job: ClaimedJob,
        sequences: Sequence[PackedSequence],
        record: Callable[[str, Mapping[str, float]], None],
        tick: Callable[[], None],
    ) -> tuple[list[PackedSequence], dict[str, float]]:
        """The sequences with `old_logprobs` under the job's starting version (precalculate_logprobs) and
        `ref_logprobs` under its reference (kl_penalty_coef), and what computing them was like, as metrics.

        The sampling logprobs stay as they are. The learners must be running; after an exception they are not.
        `record` is called with an event when learners and engines disagreed.
        """
        wanted: dict[str, str] = {}
        if job.config.precalculate_logprobs:
            wanted["old_logprobs"] = job.version.digest
        if job.config.kl_penalty_coef:
            assert job.reference_digest is not None, "a job with a KL penalty is accepted with its reference"
            wanted["ref_logprobs"] = job.reference_digest
        filled, report = list(sequences), ScoreReport()
        scored = {}
        for digest in dict.fromkeys(wanted.values()):
            scored[digest], own = self._score(job, digest, sequences, tick)
            report += own
            if own.num_discarded:
                record(RESCORED, {"num_tokens": own.num_discarded, "tolerance": self.pool.tolerance} | own.metrics())
        for field, digest in wanted.items():
            filled = [replace(row, **{field: own}) for row, own in zip(filled, scored[digest], strict=True)]
        return filled, report.metrics() if wanted else {}

    def _score(
        self, job: ClaimedJob, digest: str, sequences: Sequence[PackedSequence], tick: Callable[[], None]
    ) -> tuple[list[Tensor], ScoreReport]:
        chunk_size = job.config.logprob_calculation_chunk_size or DEFAULT_LOGPROB_CHUNK_SIZE
        learners = self.learners.scorers(digest, chunk_size)
        engines = [engine_scorer(engine, digest) for engine in self.engines]
        try:
            return self.pool.score(sequences, learners, engines, tick)
        except BaseException:
            self.learners.stop()  # some may still be at work
            raise


def mark_fresh(row: PackedSequence, step: int) -> PackedSequence:
    """The row with `is_fresh` where a token was sampled by version `step`, which the learners hold now."""
    return row if row.policy_versions is None else replace(row, is_fresh=row.policy_versions == step)
