"""The life of a training job: claim, prepare, step, checkpoint, publish."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import traceback
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import zstandard
from pydantic import TypeAdapter

from tandem.cluster.artifacts import Artifacts, job_artifact_key
from tandem.cluster.base_models import BaseModel
from tandem.cluster.config import CoordinatorConfig, DeadlinesConfig
from tandem.cluster.engine_scorer import EngineScore
from tandem.cluster.errors import JobCancelledError, LeaseLostError, StageError
from tandem.cluster.job_logprobs import JobLogprobs, mark_fresh
from tandem.cluster.jobs import ClaimedJob, JobStore, PolicyVersion
from tandem.cluster.learner_group import LearnerGroup
from tandem.cluster.lease import LeaseKeeper
from tandem.cluster.logprob_pool import LogprobPool
from tandem.rl.config import DEFAULT_LOGPROB_CHUNK_SIZE
from tandem.rl.errors import RLError
from tandem.rl.learning_rate import step_learning_rate
from tandem.rl.policy_lag import policy_lag
from tandem.rl.trajectories import TrajectoryGroup

if TYPE_CHECKING:
    from tandem.rl.batch import TrainingBatch
    from tandem.rl.packing import PackedSequence

logger = logging.getLogger(__name__)
_GROUPS = TypeAdapter(list[TrajectoryGroup])


class Coordinator:
    """Leads the jobs of one base model through its learners, one at a time.

    A job's effect is one transaction at its end (`JobStore.complete`), fenced by the claim's attempt. Whatever happens
    before it (a crash, a lost lease, a dead learner) leaves the model's newest version as it was, and the next attempt
    starts from there and does the same work again: the batch order is drawn from the job's id.
    """

    def __init__(
        self,
        base: BaseModel,
        settings: CoordinatorConfig,
        store: JobStore,
        artifacts: Artifacts,
        learners: LearnerGroup,
        engines: Sequence[EngineScore] = (),
        score_deadline_s: float = DeadlinesConfig().score_s,
    ):
        """`engines`: for each replica that may compute logprobs, the way to it."""
        self._base, self._settings, self._store, self._artifacts = base, settings, store, artifacts
        self._learners = learners
        pool = LogprobPool(base.config.logprobs, base.config.logprob_tolerance, score_deadline_s)
        self._logprobs = JobLogprobs(learners, engines, pool)
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.running_job: str | None = None
        self.last_error: str | None = None

    def run(self, stop: threading.Event) -> None:
        """Works until `stop` is set. Survives failures of the store: it says so and tries again."""
        while not stop.is_set():
            try:
                worked = self.run_next()
                self.last_error = None
            except Exception as error:
                logger.exception("The coordinator of %s failed outside a job", self._base.name)
                self.last_error = f"{type(error).__name__}: {error}"
                worked = False
            if not worked:
                stop.wait(self._settings.poll_s)

    def run_next(self) -> bool:
        """Claims and runs one job. False when none is waiting."""
        job = self._store.claim_next(self._base.name, self._owner, self._settings.lease_s)
        if job is None:
            return False
        self.running_job = job.id
        try:
            with LeaseKeeper(self._store, job, self._settings.lease_s) as lease:
                self._run_to_its_end(job, lease)
        except LeaseLostError as error:
            logger.warning("Job %s was given up: %s", job.id, error)
        finally:
            self.running_job = None
        return True

    def _run_to_its_end(self, job: ClaimedJob, lease: LeaseKeeper) -> None:
        if job.attempt > self._settings.max_attempts:
            self._store.fail(
                job,
                f"The coordinator's process ended during each of {self._settings.max_attempts} attempts, so this job "
                "may be what ends it. Look at the node's memory and the coordinator's log, and post a smaller job.",
            )
            return
        try:
            self._train(job, lease)
        except JobCancelledError:
            self._store.cancel(job)
        except LeaseLostError:
            raise
        except StageError as error:
            logger.warning("Job %s, attempt %d: %s", job.id, job.attempt, error)
            if error.retryable and job.attempt < self._settings.max_attempts:
                self._store.requeue(job, str(error))
            else:
                self._store.fail(job, f"{error} (attempt {job.attempt} of {self._settings.max_attempts})")
        except Exception as error:
            logger.exception("Job %s failed", job.id)
            where = traceback.extract_tb(error.__traceback__)[-1]
            self._store.fail(
                job,
                f"Unexpected {type(error).__name__}: {error} ({os.path.basename(where.filename)}:{where.lineno}). "
                f"The coordinator's log has the traceback of job {job.id}.",
            )

    def _train(self, job: ClaimedJob, lease: LeaseKeeper) -> None:
        batch, lag = self._prepare(job)
        lease.check()
        self._store.record_event(job, "training_started", self._started(batch) | lag)
        digest, metrics = job.version.digest, batch.metrics() | lag
        if batch.sequences:  # otherwise the version advances with unchanged weights
            self._learners.load(digest, lease.check_held)
            metrics |= self._gradient_steps(job, batch.sequences, lease)
            lease.check()
            digest = self._learners.save(
                {"base_model": self._base.name, "model_id": job.model_id, "step": job.next_step}, lease.check_held
            )
        self._store.complete(job, PolicyVersion(job.model_id, job.next_step, digest), metrics)
        logger.info("Job %s made version %d of model %s", job.id, job.next_step, job.model_id)

    def _gradient_steps(
        self, job: ClaimedJob, sequences: Sequence[PackedSequence], lease: LeaseKeeper
    ) -> dict[str, float]:
        """Trains the loaded learners. Returns the metrics of the last step, and those of the logprobs it needed."""
        config = job.config
        base_rate = self._base.config.optimizer.learning_rate if config.learning_rate is None else config.learning_rate
        chunk_size = config.logprob_calculation_chunk_size or DEFAULT_LOGPROB_CHUNK_SIZE
        sequences, scored = self._logprobs.fill(
            job, sequences, lambda type, data: self._store.record_event(job, type, data), lease.check_held
        )
        if config.plot_tensors:
            self._plot(job, sequences)
        metrics: dict[str, float] = {}
        for index, of_step in enumerate(self._steps(sequences)):
            lease.check()
            if index == 0:  # later steps begin with another policy than the one that sampled
                of_step = [mark_fresh(row, job.version.step) for row in of_step]
            rate = step_learning_rate(base_rate, config, of_step, job.reward_std_devs)
            metrics = self._learners.step(of_step, config.loss(), rate, chunk_size, lease.check_held)
            if index >= job.num_recorded_gradient_steps:
                self._store.record_event(job, "gradient_step", metrics | scored if index == 0 else metrics)
        return metrics | scored

    def _plot(self, job: ClaimedJob, sequences: Sequence[PackedSequence]) -> None:
        from tandem.rl.plots import plot_batch

        for name, png in plot_batch(sequences).items():
            self._artifacts.write_blob(job_artifact_key(job.id, name), png)

    def _prepare(self, job: ClaimedJob) -> tuple[TrainingBatch, dict[str, float]]:
        """Payload to packed sequences, whose order follows from the job's id alone, and the policy lag."""
        try:
            payload = (
                zstandard.ZstdDecompressor().decompressobj().decompress(self._artifacts.read_blob(job.payload_key))
            )
            groups = read_payload(payload)
            batch = self._base.build_batch(groups, job.config, shuffle_seed=uuid.UUID(job.id).int)
            return batch, policy_lag(groups, job.version.step)
        except RLError as error:
            raise StageError("prepare", str(error), "Correct the trajectories and post them as a new job.") from error
        except OSError as error:
            raise StageError("prepare", str(error), "Check the artifact store.", retryable=True) from error

    def _started(self, batch: TrainingBatch) -> dict[str, float]:
        num_sequences = len(batch.sequences)
        return {
            "num_sequences": num_sequences,
            "num_gradient_steps": -(-num_sequences // self._learners.sequences_per_step),
            "num_trajectories": batch.num_trajectories,
            "num_dropped_too_long": batch.num_dropped_too_long,
        }

    def _steps(self, sequences: Sequence[PackedSequence]) -> Iterator[Sequence[PackedSequence]]:
        per_step = self._learners.sequences_per_step
        for start in range(0, len(sequences), per_step):
            yield sequences[start : start + per_step]


def read_payload(payload: bytes) -> list[TrajectoryGroup]:
    """The trajectory groups of a stored job body."""
    return _GROUPS.validate_python(json.loads(payload)["trajectory_groups"])
