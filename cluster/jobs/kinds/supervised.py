"""Supervised fine-tuning: rows of messages in the order of the data, and a cross-entropy loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tandem.cluster.jobs.kinds.kind import JobKind, JobWork, Log, Outline
from tandem.cluster.jobs.warnings import warning_data
from tandem.rl.supervised.config import SupervisedConfig
from tandem.rl.supervised.steps import supervised_steps

if TYPE_CHECKING:
    from tandem.cluster.artifacts import Artifacts
    from tandem.cluster.jobs.job import ClaimedJob, QueuedJob
    from tandem.cluster.jobs.preparation import TextModel
    from tandem.rl.gradient_step.size import StepSize
    from tandem.rl.supervised.batch import SupervisedBatch

SPLIT = "sft"
"""Of log entries, and the first part of the names of a version's metrics."""
MEANS = ("loss", "learning_rate", "grad_norm", "tokens_per_second")
SUMS = ("num_trajectories", "num_tokens", "num_trainable_tokens", "num_dropped_trajectories")


class Supervised(JobKind[SupervisedConfig, "SupervisedBatch"]):
    """The payload is a dataset: zstd-compressed JSON lines. The job's batch size decides the steps, not the learners'
    step size. Its events have the numbers that openpipe-art's client expects, and no others."""

    name = "sft"
    options = SupervisedConfig
    remedy = "Correct the training data or the options, and post a new job."

    def build(self, base: TextModel, artifacts: Artifacts, job: QueuedJob) -> SupervisedBatch:
        from tandem.cluster.payloads.rows import read_rows
        from tandem.rl.supervised.batch import build_supervised

        return build_supervised(read_rows(artifacts, job.payload_key), base.text, self.options_of(job))

    def outline(self, batch: SupervisedBatch, job: ClaimedJob, step_size: StepSize) -> Outline:
        started = {
            "num_sequences": len(batch.steps),  # the client's progress bar counts batches
            "num_gradient_steps": len(batch.steps),  # as events
            **{name: batch.total(name) for name in SUMS},
        }
        return Outline(len(batch.steps), started, {}, list(_warnings(batch)))

    def steps(self, batch: SupervisedBatch, job: ClaimedJob, work: JobWork) -> Iterator[dict[str, float]]:
        totals = dict.fromkeys((*MEANS, *SUMS), 0.0)
        for number, metrics in enumerate(supervised_steps(work, batch), start=1):
            totals = {name: totals[name] + metrics[name] for name in totals}
            means = {f"{SPLIT}/{name}": totals[name] / number for name in MEANS}
            sums = {f"{SPLIT}/{name}": totals[name] for name in SUMS}
            yield metrics | means | sums | {f"{SPLIT}/gradient_step": float(number)}

    def event(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        return {name: value for name, value in metrics.items() if "/" not in name}

    def summary(self, metrics: Mapping[str, float]) -> dict[str, float]:
        return {name: value for name, value in metrics.items() if "/" in name}

    def log(self, options: SupervisedConfig, event: Mapping[str, float], index: int, step: int) -> Log | None:
        logging = options.metric_logging
        if logging is None or not logging.enabled:
            return None
        target = step if logging.target_training_step is None else logging.target_training_step
        numbers = {f"{SPLIT}/{name}": value for name, value in event.items()}
        return Log(SPLIT, {"training_step": float(target), f"{SPLIT}/gradient_step": index + 1.0, **numbers})


def _warnings(batch: SupervisedBatch) -> Iterator[dict[str, Any]]:
    dropped = batch.total("num_dropped_trajectories")
    not_trained = {"too_long": dropped, "no_assistant_message": batch.num_untrained}
    counts = {reason: number for reason, number in not_trained.items() if number}
    if counts:
        num_rows = batch.total("num_trajectories") + dropped
        message = (
            f"Of {num_rows} rows, {dropped} are longer than the model's limit of {batch.max_model_len} tokens and were "
            f"dropped, and {batch.num_untrained} have no assistant message to train."
        )
        yield warning_data("partly_trained", message, counts)
    if batch.ignored_fields:
        names = ", ".join(f"{name} {number}" for name, number in batch.ignored_fields.items())
        message = f"Fields of the rows that training doesn't read were ignored: {names}."
        yield warning_data("ignored_fields", message, batch.ignored_fields)
