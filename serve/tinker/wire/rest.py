"""Requests and answers about runs, checkpoints and sessions."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from tandem.serve.api.wire.requests import Name
from tandem.serve.tinker.wire.requests import SdkBody, Text, Ttl
from tandem.serve.tinker.wire.responses import AdamW, Response

CheckpointType = Literal["training", "sampler", "external"]
Metadata = dict[str, str]


class Checkpoint(Response):
    """A durable state of a run, or a version of a model that jobs trained."""

    checkpoint_id: str
    """The last two parts of its path."""
    checkpoint_type: CheckpointType
    time: datetime
    tinker_path: str
    size_bytes: int | None = None
    """Unknown for versions that jobs made."""
    public: bool = False
    user_metadata: Metadata | None = None
    expires_at: datetime | None = None
    base_model: str


class Cursor(Response):
    offset: int
    limit: int
    total_count: int


class Checkpoints(Response):
    checkpoints: list[Checkpoint]
    cursor: Cursor | None = None


class TrainingRun(Response):
    """A run, or a model that is trained by jobs."""

    training_run_id: str
    base_model: str
    model_owner: str
    is_lora: Literal[True] = True
    corrupted: Literal[False] = False
    lora_rank: int | None = None
    """None if the base model isn't configured here any more."""
    last_request_time: datetime
    last_checkpoint: Checkpoint | None = None
    last_sampler_checkpoint: Checkpoint | None = None
    user_metadata: Metadata | None = None


class TrainingRuns(Response):
    training_runs: list[TrainingRun]
    cursor: Cursor


class AskWeights(SdkBody):
    tinker_path: Text


class WeightsInfo(Response):
    base_model: str
    optimizer_config: AdamW = AdamW()
    is_lora: Literal[True] = True
    lora_rank: int
    train_unembed: Literal[False] = False
    train_mlp: bool
    train_attn: bool


class SetTtl(SdkBody):
    ttl_seconds: Ttl | None
    """From now. null: it doesn't expire."""


class CopyWeights(SdkBody):
    session_id: Text | None = None
    model_seq_id: Annotated[int, Field(ge=0)] | None = None
    destination_project_id: Name | None = None
    source_path: Text
    ttl_seconds: Ttl | None = None
    weights_access_token: Text | None = None


class WeightsCopied(Response):
    tinker_path: str


class ExternalWeights(Response):
    """The files of an adapter as PEFT has them."""

    urls: dict[str, str]
    """A URL that needs no key, by the file's name."""
    expires: datetime


class Sessions(Response):
    sessions: list[str]
    cursor: Cursor


class SessionDetails(Response):
    training_run_ids: list[str]
    sampler_ids: list[str]
    user_metadata: Metadata | None = None
    display_name: str | None = None


class Organization(Response):
    name: str


class User(Response):
    email: str
    """The key's name: keys have no address."""


class KeyDetails(Response):
    org_details: Organization
    user_details: User


class OwnKey(Response):
    """A key, as `tinker auth login` checks it."""

    key_id: int
    name: str
    note: str
    details: KeyDetails


class SearchOwner(SdkBody):
    """Whose sessions: all of them belong to the key's entity."""

    type: Literal["own", "accessible", "user"] = "own"
    owner_urns: Annotated[list[Text], Field(max_length=10)] | None = None
    """Of type user: names of entities."""


class SearchStatus(SdkBody):
    type: Literal["active", "cancelled", "failed", "client_finished"]
    reasons: list[Literal["success", "errored", "interrupted"]] | None = None


class SessionCursor(SdkBody):
    last_created_at: datetime
    last_session_id: Text


class SearchSessions(SdkBody):
    session_id: Text | None = None
    project_ids: Annotated[list[Text], Field(max_length=256)] | None = None
    user_metadata: dict[Text, Text] = Field(default_factory=dict, max_length=64)
    display_name: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    owner: SearchOwner = SearchOwner()
    statuses: Annotated[list[SearchStatus], Field(min_length=1, max_length=16)] | None = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    cursor: SessionCursor | None = None


class Active(Response):
    type: Literal["active"] = "active"


class Reason(Response):
    type: Literal["success", "errored", "interrupted"]


class ClientFinished(Response):
    type: Literal["client_finished"] = "client_finished"
    reason: Reason
    detail: str | None = None


class SessionSummary(Response):
    session_id: str
    created_at: datetime
    owner: str
    project_id: str
    status: Active | ClientFinished | None
    """null: it hasn't finished, and its client is silent."""
    checkpoints_count: int
    display_name: str | None = None
    user_metadata: Metadata | None = None
    checkpoint_storage_bytes: int


class NextCursor(Response):
    last_created_at: datetime
    last_session_id: str


class FoundSessions(Response):
    sessions: list[SessionSummary]
    next_cursor: NextCursor | None = None


REQUEST_BODIES: tuple[type[SdkBody], ...] = (AskWeights, SetTtl, CopyWeights, SearchSessions)
"""For the OpenAPI document: routes read bodies themselves."""
