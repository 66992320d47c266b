"""Makes response bodies of the store's rows."""

from __future__ import annotations

from collections.abc import Mapping

from tandem.rl.reports.accounting import REASONS
from tandem.serve.store.tables.training import JobRow
from tandem.serve.store.tables.trajectories import GroupRow
from tandem.serve.store.uploads.trajectory_search import Found, FoundGroup, Removed
from tandem.serve.trajectories.ids import TrajectoryId
from tandem.serve.trajectories.text_search import Match
from tandem.serve.trajectories.wire import Excerpt, GroupReward, GroupStatistics, TrajectorySummary

KNOWN_FROM_PAYLOAD = {"empty", "no_choices", "alone_in_group", "equal_rewards", "mean_reward"}
"""The reasons that the index knows. A job with others has groups of which only the tokens tell whether they trained."""
NO_VERSION = {
    "failed": "The job failed, so nothing was trained.",
    "cancelled": "The job was cancelled, so nothing was trained.",
}


def summary_view(found: Found, match: Match | None = None) -> TrajectorySummary:
    row, source = found.row, found.source
    return TrajectorySummary(
        id=str(TrajectoryId(source.id, row.group_index, row.trajectory_index)),
        job_id=source.id if source.kind == "job" else None,
        log_id=source.id if source.kind == "log" else None,
        model_id=source.model_id,
        model=f"{found.model.project}/{found.model.name}",
        split=source.split,
        group=row.group_index,
        index=row.trajectory_index,
        reward=row.reward,
        first_version=row.first_version,
        last_version=row.last_version,
        made_version=found.job.step if found.job else None,
        num_turns=row.num_turns,
        num_tokens=row.num_tokens,
        num_tool_calls=row.num_tool_calls,
        error=row.error,
        metrics=row.numbers,
        metadata=row.notes,
        created_at=source.created_at,
        excerpt=match and Excerpt(place=match.place, before=match.before, match=match.match, after=match.after),
    )


def group_view(
    source_id: str, row: GroupRow, rewards: FoundGroup | None, job: JobRow | None, not_trained: Mapping[str, int]
) -> GroupStatistics:
    """`job`: that of the group, None for a log entry. `not_trained`: its counts of trajectories, by reason."""
    trained, reason, sentence = _outcome(row, job, not_trained)
    return GroupStatistics(
        id=f"{source_id}.{row.group_index}",
        group=row.group_index,
        size=row.size,
        num_failed=row.num_failed,
        reward_mean=row.reward_mean,
        reward_std_dev=row.reward_std_dev,
        reward_min=row.reward_min,
        reward_max=row.reward_max,
        num_tokens=row.num_tokens,
        trained=trained,
        reason=reason,
        sentence=sentence,
        rewards=[
            GroupReward(id=str(TrajectoryId(source_id, row.group_index, index)), reward=reward)
            for index, reward in (rewards.rewards if rewards else ())
        ],
    )


def _outcome(
    row: GroupRow, job: JobRow | None, not_trained: Mapping[str, int]
) -> tuple[bool | None, str | None, str | None]:
    if job is None:
        return False, "logged", "It was logged, not sent to train on."
    if job.state in NO_VERSION:
        return False, job.state, NO_VERSION[job.state]
    if row.not_trained is not None:
        return False, row.not_trained, f"It doesn't train: {REASONS[row.not_trained]}."
    if job.state != "succeeded":
        return None, None, None
    if others := set(not_trained) - KNOWN_FROM_PAYLOAD:
        reasons = "; ".join(REASONS[reason] for reason in REASONS if reason in others)
        return None, None, f"It may have trained: the job left out trajectories with {reasons}. Its tokens tell."
    return True, None, None


def removed_notes(removed: list[Removed], num_supervised: int) -> list[str]:
    """Return sentences about trajectories that no list has."""
    notes = [
        f"{one.num_trajectories} trajectories of {one.num_sources} jobs and logs were removed. {one.reason}"
        if one.num_trajectories
        else f"The trajectories of {one.num_sources} jobs and logs aren't kept. {one.reason}"
        for one in removed
    ]
    if num_supervised:
        notes.append(
            f"{num_supervised} supervised and preference jobs aren't listed: they train on the rows of a dataset, not "
            "on trajectories."
        )
    return notes
