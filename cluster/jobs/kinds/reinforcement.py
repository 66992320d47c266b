"""Reinforcement learning: trajectory groups, advantages, and a policy loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tandem.cluster.jobs.kinds.kind import JobKind, JobWork, Outline
from tandem.cluster.jobs.warnings import batch_warnings
from tandem.rl.config import TrainingConfig
from tandem.rl.reports.policy_lag import policy_lag
from tandem.rl.steps import fill_logprobs, gradient_steps, logprob_chunk_size

if TYPE_CHECKING:
    from torch import Tensor

    from tandem.cluster.artifacts import Artifacts
    from tandem.cluster.jobs.job import ClaimedJob, QueuedJob
    from tandem.cluster.jobs.preparation import TextModel
    from tandem.rl.batch import TrainingBatch
    from tandem.rl.gradient_step.size import StepSize
    from tandem.rl.packing import PackedSequence


class Reinforcement(JobKind[TrainingConfig, "TrainingBatch"]):
    """The payload is zstd-compressed JSON with `trajectory_groups`. A step takes as many rows as the learners' step
    size says. If nothing has an advantage, the version advances with unchanged weights."""

    name = "rl"
    options = TrainingConfig
    remedy = "Correct the trajectories and post them as a new job."

    def build(self, base: TextModel, artifacts: Artifacts, job: QueuedJob) -> TrainingBatch:
        from tandem.cluster.payloads.reading import read_groups

        groups = read_groups(artifacts, job.payload_key, policy=job.policy)
        return base.build_batch(groups, self.options_of(job), job.shuffle_seed)

    def outline(self, batch: TrainingBatch, job: ClaimedJob, step_size: StepSize) -> Outline:
        steps, lag = step_size.split(batch.sequences), policy_lag(batch.sampled_versions, job.version.step)
        started = {
            "num_sequences": len(batch.sequences),
            "num_gradient_steps": len(steps),
            "sequences_per_step": max(map(len, steps), default=0),
            "num_trajectories": batch.num_trajectories,
            "num_trained_groups": batch.account.num_groups,
            "num_trained_trajectories": batch.account.num_trajectories,
            "num_trained_tokens": batch.account.num_tokens,
            "num_retokenised_tokens": batch.account.num_retokenised,
            "num_untrainable_tokens": sum(batch.account.untrainable.values()),
            "num_dropped_too_long": batch.num_dropped_too_long,
        }
        return Outline(len(steps), started | lag, batch.metrics() | lag, list(batch_warnings(batch)))

    def steps(self, batch: TrainingBatch, job: ClaimedJob, work: JobWork) -> Iterator[dict[str, float]]:
        config, chunk_size = self.options_of(job), logprob_chunk_size(self.options_of(job))

        def score(digest: str, rows: Sequence[PackedSequence]) -> list[Tensor]:
            return work.score(digest, rows, chunk_size)

        rows = fill_logprobs(batch.sequences, config, score, job.version.digest, job.reference_digest)
        if config.plot_tensors:
            work.plot(rows)
        rate = work.learning_rate if config.learning_rate is None else config.learning_rate
        yield from gradient_steps(work, rows, config, rate, job.version.step, job.reward_std_devs)
