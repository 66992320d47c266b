"""The gradient steps of a job of preference pairs, the same for the service and tests.

batch = build_preferences(rows, base, config)
for metrics in preference_steps(learners, batch, config, score, reference):
    ...                                 # record them, or stop here
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from tandem.rl.config import DEFAULT_LOGPROB_CHUNK_SIZE, Dpo, TrainingConfig
from tandem.rl.preferences.config import DEFAULT_BETA, DEFAULT_LEARNING_RATE, PreferenceConfig
from tandem.rl.steps import Learners, Version, fill_logprobs

if TYPE_CHECKING:
    from torch import Tensor

    from tandem.rl.packing import PackedSequence
    from tandem.rl.preferences.batch import PreferenceBatch

_WITH_REFERENCE = TrainingConfig(kl_penalty_coef=1.0)  # `fill_logprobs` then scores the reference, and nothing else


def preference_steps(
    learners: Learners,
    batch: PreferenceBatch,
    config: PreferenceConfig,
    score: Callable[[Version, Sequence[PackedSequence]], Sequence[Tensor]],
    reference: Version,
) -> Iterator[dict[str, float]]:
    """Train the learners on the pairs in their order, and yield the metrics of each gradient step after it.

    The logprobs of the reference are computed once, before the first step. Raises StepError if they aren't finite. A
    consumer that stops iterating stops the training between two steps.
    """
    beta = DEFAULT_BETA if config.beta is None else config.beta
    rate = DEFAULT_LEARNING_RATE if config.learning_rate is None else config.learning_rate
    rows = iter(fill_logprobs(batch.sequences, _WITH_REFERENCE, score, reference, reference))
    for step in batch.steps:
        objective = Dpo(beta, step.first_pair, step.num_pairs)
        yield learners.step([next(rows) for _ in step.rows], objective, rate, DEFAULT_LOGPROB_CHUNK_SIZE)
