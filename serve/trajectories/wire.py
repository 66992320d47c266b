"""Response bodies of the routes of trajectories."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel

from tandem.serve.api.wire.paging import Listed, Page


class Excerpt(BaseModel):
    """Where a text was found in a trajectory."""

    place: str
    """Like "turn 3, assistant"."""
    before: str
    match: str
    after: str


class TrajectorySummary(Listed):
    """A trajectory in a list, without its text."""

    job_id: str | None
    """The training job that brought it; null for a logged one."""
    log_id: str | None
    """The log entry that brought it; null for one of a training job."""
    model_id: str
    model: str
    """Its name, project/name."""
    split: str
    """Of the log entry; "train" for a training job."""
    group: int
    index: int
    reward: float | None
    """Null for a rollout that failed without a trajectory."""
    first_version: int | None
    """The oldest policy version that sampled it; null if unknown."""
    last_version: int | None
    made_version: int | None
    """The version that its job made."""
    num_turns: int
    num_tokens: int
    num_tool_calls: int
    error: str | None
    metrics: dict[str, float]
    metadata: dict[str, str]
    """Values as texts."""
    created_at: datetime
    excerpt: Excerpt | None = None
    """Of a search for a text."""


class Indexing(BaseModel):
    """What isn't in the index yet: numbers of training jobs and of log entries."""

    jobs: int
    logs: int


class Progress(BaseModel):
    """How far a search for a text is: matching trajectories that it has read, of all."""

    searched: int
    of: int
    unreadable: int
    """Those that this part of the search couldn't read, because their payload is gone or they are too large."""


class TrajectoryPage(Page[TrajectorySummary]):
    """Part of a list of trajectories.

    A search for a text may return a page without items while `has_more`: continue with `after=last_id`.
    """

    total: int | None
    """All that match, without the text; null on later pages."""
    still_indexing: Indexing
    progress: Progress | None = None
    notes: list[str]
    """Sentences about trajectories that aren't listed: removed ones, and data of other kinds of jobs."""


class GroupReward(BaseModel):
    """The reward of a trajectory in a group."""

    id: str
    reward: float | None


class GroupStatistics(Listed):
    """A trajectory group with its rewards. Its id is that of its job or log entry and its index, joined by a dot."""

    group: int
    size: int
    """Trajectories; rollouts that failed without one don't count."""
    num_failed: int
    reward_mean: float | None
    reward_std_dev: float | None
    """Population standard deviation; 0 if the rewards differ by rounding only."""
    reward_min: float | None
    reward_max: float | None
    num_tokens: int
    """Sampled tokens."""
    trained: bool | None
    """Whether it trained; null while that isn't known."""
    reason: str | None
    """Why it doesn't train, as a word; null if it does, or may."""
    sentence: str | None
    """The reason as a sentence."""
    rewards: list[GroupReward]
    """In order; the first 128."""


class GroupPage(Page[GroupStatistics]):
    """Groups of a training job."""

    job_id: str | None
    """Null for a version that no job made."""
    total: int
    still_indexing: bool
    notes: list[str]
