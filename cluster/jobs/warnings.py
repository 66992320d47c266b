"""Warnings of a job: events that tell its user which part of the data doesn't train as it might seem."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tandem.rl.reports.accounting import PARTS, REASONS, UNTRAINABLE
from tandem.rl.sampling_marks import UNKNOWN

if TYPE_CHECKING:
    from tandem.rl.batch import TrainingBatch
    from tandem.rl.reports.accounting import Account

WARNING = "warning"
"""The event's type. Its data has a `kind`, a `message` and `counts` by name."""


def batch_warnings(batch: TrainingBatch) -> Iterator[dict[str, Any]]:
    """Iterate over the data of the warnings that a batch deserves."""
    account = batch.account
    if not account.num_trajectories:
        yield warning_data("nothing_trained", _nothing_trained(batch), account.not_trained)
    elif account.not_trained:
        message = (
            f"{account.num_trajectories} of {batch.num_trajectories} trajectories train. Of the others, "
            f"{_reasons(account)}."
        )
        yield warning_data("partly_trained", message, account.not_trained)
    if account.parts:
        parts = "; ".join(f"{number} {PARTS[part]}" for part, number in account.parts.items())
        message = f"Parts of the trajectories don't train as the rest: {parts}."
        yield warning_data("parts_not_trained", message, account.parts)
    if account.untrainable:
        reasons = "; ".join(f"{number} for {UNTRAINABLE[reason]}" for reason, number in account.untrainable.items())
        message = f"Sampled tokens that can't train, whatever their reward: {reasons}."
        yield warning_data("untrainable_tokens", message, account.untrainable)
    if account.num_retokenised:
        message = (
            f"{account.num_retokenised} trained tokens aren't known to be those that were sampled: their choices have "
            "no token ids, so their text was tokenised again, as allow_training_without_logprobs asks. Sample with "
            "return_token_ids=true."
        )
        yield warning_data("retokenised_tokens", message, {"tokens": account.num_retokenised})
    marks = {mark: number for mark, number in account.sampled_with.items() if mark != UNKNOWN}
    if marks:
        message = (
            f"Of {account.num_tokens} trained tokens, some were sampled with options that change the policy's "
            f"distribution: {_listed(marks)}. Their logprobs are the policy's without these options, so the loss "
            "doesn't correct for them. Sample with temperature 1 and no other such option, or keep them mild."
        )
        yield warning_data("other_distribution", message, marks)
    if account.ignored_fields:
        message = f"Fields that training doesn't read were ignored: {_listed(account.ignored_fields)}."
        yield warning_data("ignored_fields", message, account.ignored_fields)


def fresh_optimizer_warning(step: int) -> dict[str, Any]:
    """Return the data of the warning that the job starts from version `step` without its optimizer state."""
    message = (
        f"Version {step}, from which the job starts, has no optimizer state: retention.keep_optimizer has deleted it, "
        "or the model was forked without it. So training begins with a new optimizer. The first updates are larger "
        "than usual: lower learning_rate if they are too large."
    )
    return warning_data("fresh_optimizer", message, {"step": step})


def _nothing_trained(batch: TrainingBatch) -> str:
    unchanged = "Nothing was trained: the new version has the weights of the one before."
    if not batch.num_trajectories:
        return f"{unchanged} The job has no trajectories."
    return f"{unchanged} Of {batch.num_trajectories} trajectories, {_reasons(batch.account)}."


def _reasons(account: Account) -> str:
    return "; ".join(f"{number} {_have(number)} {REASONS[reason]}" for reason, number in account.not_trained.items())


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items())


def warning_data(kind: str, message: str, counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the data of a warning."""
    return {"kind": kind, "message": message, "counts": dict(counts)}
