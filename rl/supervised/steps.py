"""The gradient steps of a supervised job, the same for the service and tests.

batch = build_supervised(rows, base, config)
for metrics in supervised_steps(learner, batch):
    ...                                 # record them, or stop here
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tandem.rl.config import DEFAULT_LOGPROB_CHUNK_SIZE, CrossEntropy
from tandem.rl.steps import Learners

if TYPE_CHECKING:
    from tandem.rl.supervised.batch import SupervisedBatch, SupervisedStep


def supervised_steps(learners: Learners, batch: SupervisedBatch) -> Iterator[dict[str, float]]:
    """Train the learners on the batches in their order, and yield the metrics of each one after it.

    A batch without trained tokens makes no gradient step; its loss is 0. A consumer that stops iterating stops the
    training between two steps.
    """
    for step in batch.steps:
        began = time.perf_counter()
        metrics: dict[str, float] = {}
        if step.rows:
            metrics = learners.step(step.rows, CrossEntropy(), step.learning_rate, DEFAULT_LOGPROB_CHUNK_SIZE)
        yield _described(step, metrics, time.perf_counter() - began)


def _described(step: SupervisedStep, metrics: dict[str, float], elapsed_s: float) -> dict[str, float]:
    return {
        "loss": metrics.get("loss/train", 0.0),
        "learning_rate": step.learning_rate,
        "grad_norm": metrics.get("loss/grad_norm", 0.0),
        "num_trajectories": float(step.num_trajectories),
        "num_tokens": float(step.num_tokens),
        "num_trainable_tokens": float(step.num_trainable_tokens),
        "num_dropped_trajectories": float(step.num_dropped_trajectories),
        "tokens_per_second": step.num_tokens / elapsed_s if elapsed_s > 0 else 0.0,
    }
