"""The stages of a training job: prepare, start the learners, score, step, checkpoint."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tandem.cluster.config import BaseModelConfig
from tandem.cluster.errors import StageError
from tandem.cluster.jobs.engine_agreement import EngineAgreement
from tandem.cluster.jobs.engine_sleep import EnginesAsleep
from tandem.cluster.jobs.job import PolicyVersion
from tandem.cluster.jobs.job_metrics import JobMetrics
from tandem.cluster.jobs.kinds.kind import Batch, JobKind, Outline
from tandem.cluster.jobs.kinds.registry import KINDS
from tandem.cluster.jobs.preparation import Preparation
from tandem.cluster.jobs.preparing_ahead import PreparingAhead
from tandem.cluster.jobs.running_job import RunningJob
from tandem.cluster.jobs.traces import JobTrace, JobTraces, untraced
from tandem.cluster.jobs.warnings import WARNING, fresh_optimizer_warning
from tandem.cluster.learners.group import LearnerGroup
from tandem.cluster.learners.training import Training
from tandem.cluster.logprobs.of_job import JobLogprobs
from tandem.cluster.logprobs.pool import ScoreReport
from tandem.cluster.processes.waiting import OnWait
from tandem.rl.errors import RLError, StepError
from tandem.rl.gradient_step.size import StepSize

if TYPE_CHECKING:
    from torch import Tensor

    from tandem.rl.config import Objective
    from tandem.rl.packing import PackedSequence
    from tandem.rl.version_probe import VersionProbe

RESCORED = "logprobs_rescored"
SAMPLED = "logprobs/sampled_current_"
"""Metrics that only the first gradient step has: the policy of later ones has sampled nothing."""


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
    asleep: EnginesAsleep | None = None
    """With it, the engines sleep while the learners work."""
    traces: JobTraces | None = None
    """Without it, no tokens are traced."""

    @cached_property
    def counted(self) -> JobMetrics:
        return JobMetrics(self.base.name)

    def train(self, job: RunningJob) -> tuple[PolicyVersion, dict[str, float]]:
        """Return the version that the job makes, its checkpoint durable, and the metrics of the whole job."""
        claim, kind = job.claim, KINDS[job.claim.kind]
        batch = self._prepare(job, kind)
        outline = kind.outline(batch, claim, self.learners.step_size)
        metrics, digest = dict(outline.metrics), claim.version.digest
        if not batch.sequences:  # the version advances with unchanged weights
            self._begin(job, outline)
            return PolicyVersion(claim.model_id, claim.next_step, digest), metrics
        num_tokens = sum(sequence.num_tokens for sequence in batch.sequences)
        trace = self.traces.begin(claim, batch) if self.traces else None
        with self.learners.training(
            f"{claim.id}/{claim.attempt}", num_tokens, lambda warning: job.record(WARNING, warning), job.clock
        ) as training:
            with nullcontext() if self.learners.is_ready else self._engines_asleep(job, training):
                training.start(lambda: self._wait_for_learners(job))
            self._begin(job, outline)
            if claim.lost_optimizer:
                job.record(WARNING, fresh_optimizer_warning(claim.version.step))
            if self.agreement:
                with job.clock.phase("compare_engine"):
                    self.agreement.before_training(job)
            with self.ahead.while_training():
                with self._engines_asleep(job, training):
                    training.load(digest, job.check_urgent, lambda: self._wait_for_learners(job), claim.fresh_optimizer)
                    metrics |= self._gradient_steps(job, training, kind, batch, outline.num_steps, trace)
                stepped = time.monotonic()
                if trace:
                    trace.write(training.traces)
                metadata: dict[str, str | int] = {"base_model": self.base.name, "model_id": claim.model_id}
                metadata["step"] = claim.next_step
                offered = self.agreement.offer(training.seal(metadata, job.check)) if self.agreement else None
                digest = training.save(metadata, job.check)
        if self.agreement:
            with job.clock.phase("publish"):
                self.agreement.after_publishing(job, claim.next_step, digest, offered)
        self.counted.published(time.monotonic() - stepped)
        for warning in trace.warnings() if trace else ():
            job.record(WARNING, warning)
        return PolicyVersion(claim.model_id, claim.next_step, digest), metrics

    def probe_version(self, digest: str, on_wait: OnWait) -> VersionProbe:
        """Return the learners' logprobs of the probe under a version that no job has made, in turn with other work.

        Raises the errors of `LearnerGroup.probe_version`.
        """
        with self.learners.training(f"probe/{digest}", 0) as training:
            with self.asleep.during(on_wait, training.free_memory) if self.asleep else nullcontext():
                return training.probe_version(digest, on_wait)

    @contextmanager
    def _engines_asleep(self, job: RunningJob, training: Training) -> Iterator[None]:
        if self.asleep is None:
            yield
            return
        asleep = self.asleep.during(job.check_urgent, training.free_memory)
        with job.clock.phase("engine_sleep"), asleep, job.clock.phase("idle"):
            yield

    def _begin(self, job: RunningJob, outline: Outline) -> None:
        job.check()
        job.record("training_started", outline.started)
        for warning in outline.warnings:
            job.record(WARNING, warning)

    def _prepare(self, job: RunningJob, kind: JobKind[Any, Any]) -> Batch:
        try:
            with job.clock.phase("prepare"):
                return self.ahead.batch(job.claim, job.check, lambda seconds: job.clock.count(cpu_seconds=seconds))
        except RLError as error:
            raise StageError("prepare", str(error), kind.remedy) from error
        except OSError as error:
            raise StageError("prepare", str(error), "Check the artifact store.", retryable=True) from error

    def _wait_for_learners(self, job: RunningJob) -> None:
        """Show users in the job if the cluster has no room for the learners."""
        job.check()
        job.show_waiting(self.learners.waiting_for)

    def _gradient_steps(
        self,
        job: RunningJob,
        training: Training,
        kind: JobKind[Any, Any],
        batch: Batch,
        num_steps: int,
        trace: JobTrace | None,
    ) -> dict[str, float]:
        """Train from the loaded version to the end. Return the metrics of the last step, and those of scoring."""
        work = _WorkOfJob(self, training, job, trace)
        metrics: dict[str, float] = {}
        of_sampling: dict[str, float] = {}
        try:
            for index, metrics in enumerate(kind.steps(batch, job.claim, work)):
                of_sampling |= {name: value for name, value in metrics.items() if name.startswith(SAMPLED)}
                if index == num_steps - 1:  # before the event, so that the next job needn't wait for the store
                    began = time.monotonic()
                    training.finish(job.check_urgent)
                    metrics = metrics | {"time/check_version_s": time.monotonic() - began}
                self.counted.trained(metrics.get("data/step_trainer_tokens", 0.0))
                job.record_step(index, kind.event(metrics | work.scoring if index == 0 else metrics))
                job.check()
        except StepError as error:
            raise StageError("score", str(error), "The job made no version.") from error
        return {**of_sampling, **kind.summary(metrics), **work.scoring}


@dataclass(frozen=True)
class _WorkOfJob:
    """The learners as a kind of job sees them. A step is abandoned when its job urgently has to end."""

    stages: JobStages
    training: Training
    job: RunningJob
    trace: JobTrace | None
    reports: list[ScoreReport] = field(default_factory=list)

    @property
    def step_size(self) -> StepSize:
        return self.training.step_size

    @property
    def learning_rate(self) -> float:
        return self.stages.base.optimizer.learning_rate

    @property
    def scoring(self) -> dict[str, float]:
        """Metrics of computing logprobs before the steps, if any were needed."""
        return sum(self.reports, ScoreReport()).metrics() if self.reports else {}

    def step(
        self, sequences: Sequence[PackedSequence], loss: Objective, learning_rate: float, logprob_chunk_size: int
    ) -> dict[str, float]:
        sequences = self.trace.step(sequences) if self.trace else untraced(sequences)
        return self.training.step(
            sequences, loss, learning_rate, logprob_chunk_size, self.job.check_urgent, self.job.check
        )

    def score(self, digest: str, rows: Sequence[PackedSequence], chunk_size: int) -> list[Tensor]:
        """Record an event where learners and engines disagreed."""
        of_job = self.stages.logprobs
        logprobs, report = of_job.score(self.training, digest, rows, chunk_size, self.job.check)
        if report.num_discarded:
            discarded = {"num_tokens": report.num_discarded, "tolerance": of_job.pool.tolerance}
            self.job.record(RESCORED, discarded | report.metrics())
        self.reports.append(report)
        return logprobs

    def plot(self, rows: Sequence[PackedSequence]) -> None:
        with self.job.clock.phase("plot"):
            self.stages.preparation.plot(self.job.claim.id, rows, self.job.check)
