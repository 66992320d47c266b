"""The gradient steps of a training job, the same for the service, benchmarks and tests.

    batch = build_batch(groups, tokenizer, config, max_model_len, shuffle_seed)
    rows = fill_logprobs(batch.sequences, config, score, policy, reference)
    for metrics in gradient_steps(learner, rows, config, learning_rate, version):
        ...                                 # record them, or stop here

One `rl.learner.Learner` takes these steps as well as a group of learners on a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tandem.rl.config import DEFAULT_LOGPROB_CHUNK_SIZE, Objective, TrainingConfig
from tandem.rl.errors import StepError
from tandem.rl.gradient_step.learning_rate import step_learning_rate
from tandem.rl.gradient_step.size import StepSize

if TYPE_CHECKING:
    from torch import Tensor

    from tandem.rl.packing import PackedSequence

Version = TypeVar("Version")
"""The caller's identifier of a policy version: its number, or a digest of its checkpoint."""


class Learners(Protocol):
    """One or more learners that hold the same policy and update it together."""

    @property
    def step_size(self) -> StepSize:
        """The packed sequences of one gradient step, over all learners."""

    def step(
        self, sequences: Sequence[PackedSequence], loss: Objective, learning_rate: float, logprob_chunk_size: int
    ) -> dict[str, float]:
        """Take one gradient step over packed sequences and return its metrics."""


def fill_logprobs(
    rows: Sequence[PackedSequence],
    config: TrainingConfig,
    score: Callable[[Version, Sequence[PackedSequence]], Sequence[Tensor]],
    policy: Version,
    reference: Version | None = None,
) -> list[PackedSequence]:
    """Return the rows with the logprobs that the job's options need before its first step.

    `precalculate_logprobs` needs `old_logprobs` under `policy`, the version that the job starts from, and
    `kl_penalty_coef` needs `ref_logprobs` under `reference`. A version that serves as both is scored once. The
    sampling logprobs stay as they are. Raises StepError if a version's logprobs aren't finite where tokens are trained.

    `score` returns the token-aligned logprobs [T] of each row under a version, as `Learner.score` does.
    """
    wanted: dict[str, Version] = {}
    if config.precalculate_logprobs:
        wanted["old_logprobs"] = policy
    if config.kl_penalty_coef:
        if reference is None:
            raise ValueError("kl_penalty_coef is set, so the job needs a reference version; there is none.")
        wanted["ref_logprobs"] = reference
    scored = {version: score(version, rows) for version in dict.fromkeys(wanted.values())}
    filled = list(rows)
    for field, version in wanted.items():
        if any(not own[row.is_trained].isfinite().all() for row, own in zip(rows, scored[version], strict=True)):
            which = "that the job starts from" if field == "old_logprobs" else "that is the KL reference"
            raise StepError(
                f"The version {which} ({version}) gives logprobs that aren't finite: earlier training destroyed it, "
                "usually with a learning rate that was too high. Delete it, or choose another one."
            )
        for index, own in enumerate(scored[version]):
            known: dict[str, Any] = {field: own}
            filled[index] = replace(filled[index], **known)
    return filled


def gradient_steps(
    learners: Learners,
    rows: Sequence[PackedSequence],
    config: TrainingConfig,
    learning_rate: float,
    version: int,
    reward_std_devs: Sequence[float] = (),
) -> Iterator[dict[str, float]]:
    """Train the learners on the rows in their order, and yield the metrics of each gradient step after it.

    A consumer that stops iterating stops the training between two steps.

    Args:
        learners: they hold the policy version that the job starts from.
        rows: the job's packed sequences, from `fill_logprobs`.
        config: the job's options.
        learning_rate: the rate before the options scale it (`step_learning_rate`).
        version: the number of the policy version that the job starts from.
        reward_std_devs: reward_std_dev of the model's earlier jobs, oldest first.
    """
    loss, chunk_size = config.loss(), logprob_chunk_size(config)
    for index, of_step in enumerate(learners.step_size.split(rows)):
        if index == 0:  # later steps begin with a policy that sampled nothing
            of_step = [mark_fresh(row, version) for row in of_step]
        rate = step_learning_rate(learning_rate, config, of_step, reward_std_devs)
        yield learners.step(of_step, loss, rate, chunk_size)


def mark_fresh(row: PackedSequence, version: int) -> PackedSequence:
    """Return the row with `is_fresh` true where a token was sampled by `version`."""
    if row.policy_versions is None:
        return row
    repeats = replace(row.repeats, is_fresh=row.repeats.policy_versions == version)
    return replace(row, is_fresh=row.policy_versions == version, repeats=repeats)


def logprob_chunk_size(config: TrainingConfig) -> int:
    """Return the number of tokens whose logits are in memory at once."""
    return config.logprob_calculation_chunk_size or DEFAULT_LOGPROB_CHUNK_SIZE
