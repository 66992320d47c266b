"""The stages of a training job: prepare, start the learners, score, step, checkpoint."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tandem.cluster.config import BaseModelConfig
from tandem.cluster.errors import StageError
from tandem.cluster.jobs.engine_agreement import EngineAgreement
from tandem.cluster.jobs.job import PolicyVersion
from tandem.cluster.jobs.preparation import Preparation
from tandem.cluster.jobs.preparing_ahead import PreparingAhead
from tandem.cluster.jobs.running_job import RunningJob
from tandem.cluster.jobs.warnings import WARNING, batch_warnings, fresh_optimizer_warning
from tandem.cluster.learners.group import LearnerGroup
from tandem.cluster.learners.training import Training
from tandem.cluster.logprobs.of_job import JobLogprobs
from tandem.cluster.logprobs.pool import ScoreReport
from tandem.rl.errors import RLError, StepError
from tandem.rl.policy_lag import policy_lag
from tandem.rl.step_size import StepSize
from tandem.rl.steps import fill_logprobs, gradient_steps, logprob_chunk_size

if TYPE_CHECKING:
    from torch import Tensor

    from tandem.rl.batch import TrainingBatch
    from tandem.rl.config import LossConfig
    from tandem.rl.packing import PackedSequence

RESCORED = "logprobs_rescored"


@dataclass(frozen=True)
class JobStages:
    """The work of the jobs of one base model, and the events that it records."""

    base: BaseModelConfig
    preparation: Preparation
    ahead: PreparingAhead
    learners: LearnerGroup
    logprobs: JobLogprobs
    agreement: EngineAgreement | None = None
    """Without it, no engine is compared with the learners."""

    def train(self, job: RunningJob) -> tuple[PolicyVersion, dict[str, float]]:
        """Return the version that the job makes, its checkpoint durable, and the metrics of the whole job."""
        claim = job.claim
        batch = self._prepare(job)
        lag = policy_lag(batch.sampled_versions, claim.version.step)
        metrics, digest = batch.metrics() | lag, claim.version.digest
        if not batch.sequences:  # the version advances with unchanged weights
            self._begin(job, batch, lag)
            return PolicyVersion(claim.model_id, claim.next_step, digest), metrics
        num_tokens = sum(sequence.num_tokens for sequence in batch.sequences)
        with self.learners.training(
            f"{claim.id}/{claim.attempt}", num_tokens, lambda warning: job.record(WARNING, warning)
        ) as training:
            training.start(lambda: self._wait_for_learners(job))
            self._begin(job, batch, lag)
            if self.agreement:
                self.agreement.before_training(job)
            with self.ahead.while_training():
                training.load(digest, job.check_urgent, lambda: self._wait_for_learners(job), claim.fresh_optimizer)
                metrics |= self._gradient_steps(job, training, batch.sequences)
                metadata: dict[str, str | int] = {"base_model": self.base.name, "model_id": claim.model_id}
                metadata["step"] = claim.next_step
                offered = self.agreement.offer(training.seal(metadata, job.check)) if self.agreement else None
                digest = training.save(metadata, job.check)
        if self.agreement:
            self.agreement.after_publishing(job, claim.next_step, digest, offered)
        return PolicyVersion(claim.model_id, claim.next_step, digest), metrics

    def _begin(self, job: RunningJob, batch: TrainingBatch, lag: dict[str, float]) -> None:
        job.check()
        job.record("training_started", self._started(batch) | lag)
        for warning in batch_warnings(batch):
            job.record(WARNING, warning)
        if job.claim.fresh_optimizer and batch.sequences:
            job.record(WARNING, fresh_optimizer_warning(job.claim.version.step))

    def _prepare(self, job: RunningJob) -> TrainingBatch:
        try:
            return self.ahead.batch(job.claim, job.check)
        except RLError as error:
            raise StageError("prepare", str(error), "Correct the trajectories and post them as a new job.") from error
        except OSError as error:
            raise StageError("prepare", str(error), "Check the artifact store.", retryable=True) from error

    def _wait_for_learners(self, job: RunningJob) -> None:
        """Show users in the job if the cluster has no room for the learners."""
        job.check()
        job.show_waiting(self.learners.waiting_for)

    def _gradient_steps(
        self, job: RunningJob, training: Training, sequences: Sequence[PackedSequence]
    ) -> dict[str, float]:
        """Train from the loaded version to the end. Return the metrics of the last step, and those of scoring."""
        claim, config = job.claim, job.claim.config
        rows, scored = self._fill_logprobs(job, training, sequences)
        if config.plot_tensors:
            self.preparation.plot(claim.id, rows, job.check)
        rate = self.base.optimizer.learning_rate if config.learning_rate is None else config.learning_rate
        job.check()
        metrics: dict[str, float] = {}
        last = len(self.learners.step_size.split(rows)) - 1
        steps = gradient_steps(
            _LearnersOfJob(training, job), rows, config, rate, claim.version.step, claim.reward_std_devs
        )
        for index, metrics in enumerate(steps):
            if index == last:  # before the event, so that the next job needn't wait for the store
                began = time.monotonic()
                training.finish(job.check_urgent)
                metrics = metrics | {"time/check_version_s": time.monotonic() - began}
            job.record_step(index, metrics | scored if index == 0 else metrics)
            job.check()
        return metrics | scored

    def _fill_logprobs(
        self, job: RunningJob, training: Training, sequences: Sequence[PackedSequence]
    ) -> tuple[list[PackedSequence], dict[str, float]]:
        """Return the rows with the logprobs that the job needs, and metrics of computing them, if any were needed.

        Records an event where learners and engines disagreed.
        """
        config, reports = job.claim.config, list[ScoreReport]()

        def score(digest: str, rows: Sequence[PackedSequence]) -> list[Tensor]:
            logprobs, report = self.logprobs.score(training, digest, rows, logprob_chunk_size(config), job.check)
            if report.num_discarded:
                discarded = {"num_tokens": report.num_discarded, "tolerance": self.logprobs.pool.tolerance}
                job.record(RESCORED, discarded | report.metrics())
            reports.append(report)
            return logprobs

        try:
            filled = fill_logprobs(sequences, config, score, job.claim.version.digest, job.claim.reference_digest)
        except StepError as error:
            raise StageError("score", str(error), "The job made no version.") from error
        return filled, sum(reports, ScoreReport()).metrics() if reports else {}

    def _started(self, batch: TrainingBatch) -> dict[str, float]:
        steps = self.learners.step_size.split(batch.sequences)
        return {
            "num_sequences": len(batch.sequences),
            "num_gradient_steps": len(steps),
            "sequences_per_step": max(map(len, steps), default=0),
            "num_trajectories": batch.num_trajectories,
            "num_trained_groups": batch.account.num_groups,
            "num_trained_trajectories": batch.account.num_trajectories,
            "num_trained_tokens": batch.account.num_tokens,
            "num_dropped_too_long": batch.num_dropped_too_long,
        }


@dataclass(frozen=True)
class _LearnersOfJob:
    """The learners as `rl.steps` sees them. A step is abandoned when its job urgently has to end."""

    training: Training
    job: RunningJob

    @property
    def step_size(self) -> StepSize:
        return self.training.step_size

    def step(
        self, sequences: Sequence[PackedSequence], loss: LossConfig, learning_rate: float, logprob_chunk_size: int
    ) -> dict[str, float]:
        return self.training.step(
            sequences, loss, learning_rate, logprob_chunk_size, self.job.check_urgent, self.job.check
        )
