"""The stages of a training job: prepare, start the learners, score, step, checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tandem.cluster.config import BaseModelConfig
from tandem.cluster.errors import StageError
from tandem.cluster.jobs.job import ClaimedJob, JobStore, PolicyVersion
from tandem.cluster.jobs.preparation import Preparation
from tandem.cluster.jobs.preparing_ahead import PreparingAhead
from tandem.cluster.learners.group import LearnerGroup
from tandem.cluster.logprobs.of_job import JobLogprobs, mark_fresh
from tandem.rl.config import DEFAULT_LOGPROB_CHUNK_SIZE
from tandem.rl.errors import RLError
from tandem.rl.learning_rate import step_learning_rate
from tandem.rl.policy_lag import policy_lag

if TYPE_CHECKING:
    from tandem.rl.batch import TrainingBatch
    from tandem.rl.packing import PackedSequence

Tick = Callable[[], None]


@dataclass(frozen=True)
class JobStages:
    """Does the work of the jobs of one base model, and records its events.

    Two callbacks say when to stop, by raising: `check` where the job can be ended without damage, and `tick`, called
    about twice a second, also where ending it costs new learners.
    """

    base: BaseModelConfig
    store: JobStore
    preparation: Preparation
    ahead: PreparingAhead
    learners: LearnerGroup
    logprobs: JobLogprobs

    def train(self, job: ClaimedJob, tick: Tick, check: Tick) -> tuple[PolicyVersion, dict[str, float]]:
        """The version that the job makes, its checkpoint durable, and the metrics of the whole job."""

        def tick_and_look() -> None:
            tick()
            self.ahead.look()

        batch = self._prepare(job, check)
        lag = policy_lag(batch.sampled_versions, job.version.step)
        if batch.sequences:
            self._start_learners(job, check)
        check()
        self.store.record_event(job, "training_started", self._started(batch) | lag)
        digest, metrics = job.version.digest, batch.metrics() | lag
        if batch.sequences:  # otherwise the version advances with unchanged weights
            self.learners.load(digest, tick_and_look)
            metrics |= self._gradient_steps(job, batch.sequences, tick_and_look, check)
            check()
            digest = self.learners.save(
                {"base_model": self.base.name, "model_id": job.model_id, "step": job.next_step}, tick_and_look
            )
        return PolicyVersion(job.model_id, job.next_step, digest), metrics

    def _prepare(self, job: ClaimedJob, check: Tick) -> TrainingBatch:
        try:
            return self.ahead.batch(job, check)
        except RLError as error:
            raise StageError("prepare", str(error), "Correct the trajectories and post them as a new job.") from error
        except OSError as error:
            raise StageError("prepare", str(error), "Check the artifact store.", retryable=True) from error

    def _start_learners(self, job: ClaimedJob, check: Tick) -> None:
        """Users see it in the job when the cluster has no room for them."""
        reported: str | None = None

        def tick() -> None:
            nonlocal reported
            check()
            if self.learners.waiting_for != reported:
                reported = self.learners.waiting_for
                self.store.report_waiting(job, reported)

        self.learners.start(tick)

    def _gradient_steps(
        self, job: ClaimedJob, sequences: Sequence[PackedSequence], tick: Tick, check: Tick
    ) -> dict[str, float]:
        """Trains the loaded learners. Returns the metrics of the last step, and those of the logprobs it needed."""
        config = job.config
        base_rate = self.base.optimizer.learning_rate if config.learning_rate is None else config.learning_rate
        chunk_size = config.logprob_calculation_chunk_size or DEFAULT_LOGPROB_CHUNK_SIZE
        sequences, scored = self.logprobs.fill(
            job, sequences, lambda type, data: self.store.record_event(job, type, data), check
        )
        if config.plot_tensors:
            self.preparation.plot(job.id, sequences, tick=check)
        metrics: dict[str, float] = {}
        for index, of_step in enumerate(self._steps(sequences)):
            check()
            if index == 0:  # later steps begin with another policy than the one that sampled
                of_step = [mark_fresh(row, job.version.step) for row in of_step]
            rate = step_learning_rate(base_rate, config, of_step, job.reward_std_devs)
            metrics = self.learners.step(of_step, config.loss(), rate, chunk_size, tick)
            if index >= job.num_recorded_gradient_steps:
                self.store.record_event(job, "gradient_step", metrics | scored if index == 0 else metrics, index)
        return metrics | scored

    def _started(self, batch: TrainingBatch) -> dict[str, float]:
        num_sequences = len(batch.sequences)
        return {
            "num_sequences": num_sequences,
            "num_gradient_steps": -(-num_sequences // self.learners.sequences_per_step),
            "num_trajectories": batch.num_trajectories,
            "num_dropped_too_long": batch.num_dropped_too_long,
        }

    def _steps(self, sequences: Sequence[PackedSequence]) -> Iterator[Sequence[PackedSequence]]:
        per_step = self.learners.sequences_per_step
        for start in range(0, len(sequences), per_step):
            yield sequences[start : start + per_step]
