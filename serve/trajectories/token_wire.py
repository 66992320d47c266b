"""Response bodies of the route of a trajectory's tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

State = Literal["trained", "not_trained", "logged"]


class TokenTurn(BaseModel):
    """A sampled turn in a sequence."""

    begin: int
    """Number of its first token."""
    num_tokens: int
    index: int
    """Of the message or choice in its history, or of the exchange among those of its protocol."""
    policy_version: int | None
    """The version that sampled it; null if unknown."""


class TokenSequence(BaseModel):
    """An exact token sequence: a trajectory has one or more. Tokens are numbered through all of them."""

    begin: int
    """Number of its first token."""
    num_tokens: int
    num_trained: int
    history: int
    """0 for the trajectory's own messages, k for additional_histories[k - 1]."""
    advantage: float | None
    """Balanced and normalised, the same for all of its trained tokens; null if it wasn't trained."""
    weight: float | None
    """Of each of its tokens in the loss; 1 on average over the job."""
    policy_version: int | None
    """The version that the trajectory began with; null if unknown."""
    gradient_step: int | None
    """Index of the gradient step of the job that trained it, from 0."""
    turns: list[TokenTurn]


class TokenColumns(BaseModel):
    """Tokens `start` to `start + len(ids)` of the trajectory, one entry per token in each column."""

    start: int
    ids: list[int]
    texts: list[str]
    """A part of a character is the replacement character."""
    bytes: list[str | None]
    """In hexadecimal, of tokens that aren't text by themselves."""
    mask: list[bool]
    """Whether the token was trained."""
    sampling_logprobs: list[float | None]
    """The sampler's; null where unknown."""
    learner_logprobs: list[float | None]
    """The policy's at the gradient step, of which the loss was computed."""
    old_logprobs: list[float | None] | None
    """Under the policy at the start of the job, if the job computed them."""
    ref_logprobs: list[float | None] | None
    """Under the KL reference, if the job had one."""
    ratios: list[float | None]
    """The importance ratio at token level: learner over old logprobs, or over the sampler's without these."""


class NotableToken(BaseModel):
    """A token with an extreme value."""

    token: int
    """Its number."""
    text: str
    bytes: str | None
    """In hexadecimal, if it isn't text by itself."""
    value: float


class Notable(BaseModel):
    """The most extreme tokens of the whole trajectory, the most extreme first."""

    mismatch: list[NotableToken]
    """By the size of learner's minus sampler's logprob."""
    improbable: list[NotableToken]
    """By logprob: the learner's, or the sampler's if it wasn't trained."""
    ratio: list[NotableToken]
    """By the size of the logarithm of the importance ratio."""


class Range(BaseModel):
    """Numbers of all known values."""

    num: int
    min: float
    max: float
    mean: float
    mean_abs: float


class TrajectoryTokens(BaseModel):
    """The tokens of a trajectory as they were trained, or as they were sent if they weren't."""

    id: str
    job_id: str | None
    log_id: str | None
    model_id: str
    kind: str
    """rl, sft or dpo of a job; log."""
    state: State
    reason: str | None
    """Why it wasn't trained, as a word; null if it was."""
    message: str | None
    """The reason as a sentence."""
    made_version: int | None
    """The version that its job made."""
    num_tokens: int
    num_trained: int
    num_choices_without_ids: int
    """Sampled turns that don't say their tokens, and aren't among these."""
    sequences: list[TokenSequence]
    tokens: TokenColumns
    has_more: bool
    """Whether tokens follow: continue with `start`."""
    logprobs: Range | None
    differences: Range | None
    """Learner's minus sampler's logprob."""
    ratios: Range | None
    notable: Notable
