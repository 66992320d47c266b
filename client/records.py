"""The objects that the API returns, as frozen dataclasses.

Fields that a newer service adds are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """Raise TypeError if `data` lacks a field."""
        known = {field.name: data[field.name] for field in fields(cls) if field.name in data}
        times = {name: datetime.fromisoformat(value) for name, value in known.items() if name.endswith("_at") and value}
        return cls(**{**known, **times})


@dataclass(frozen=True)
class Page(Generic[T]):
    """Part of a list."""

    data: list[T]
    last_id: str | None
    has_more: bool

    @classmethod
    def parser(cls, parse_item: Callable[[Mapping[str, Any]], T]) -> Callable[[Mapping[str, Any]], Page[T]]:
        def parse(data: Mapping[str, Any]) -> Page[T]:
            return Page([parse_item(item) for item in data["data"]], data["last_id"], data["has_more"])

        return parse


@dataclass(frozen=True)
class Model(Record):
    """A LoRA policy on a base model."""

    id: str
    entity: str
    project: str
    short_name: str
    base_model: str
    step: int
    """The newest version when the service answered; 0 before any training."""
    created_at: datetime
    lora: dict[str, Any] | None = None
    """Its LoRA settings: r, alpha, target_modules, seed."""
    origin: dict[str, Any] | None = None
    """Where it comes from, if not from training jobs alone: its kind, "fork" or "import" with the version, or "run"."""

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        return super().parse({**data, "short_name": data["name"]})

    @property
    def origin_text(self) -> str | None:
        """A few words about its origin."""
        match self.origin:
            case {"kind": "fork", "model": model, "step": step}:
                return f"fork of {model}:step{step}"
            case {"kind": "run", "run": run}:
                return f"tinker run {run}"
            case {"kind": "import", "step": step}:
                return f"step {step} imported"
        return None

    @property
    def name(self) -> str:
        """The name for completions: the newest version answers."""
        return f"{self.entity}/{self.project}/{self.short_name}"

    def version_name(self, step: int) -> str:
        """Return the name for completions of one version."""
        return f"{self.name}:step{step}"


@dataclass(frozen=True)
class Version(Record):
    """A version of a model that can be sampled."""

    step: int
    digest: str
    """SHA-256 of the checkpoint's manifest; completions carry it in x-policy-digest."""
    created_at: datetime


@dataclass(frozen=True)
class Checkpoint(Record):
    """A version with the metrics of the job that made it."""

    step: int
    metrics: dict[str, float]
    digest: str
    created_at: datetime
    has_optimizer: bool = True
    """False if a job that starts from this version begins with a new optimizer."""
    origin: dict[str, Any] | None = None
    """Of a version that no job made: its kind, "fork" or "import", and where it comes from."""


@dataclass(frozen=True)
class Adapter:
    """A version's adapter on this machine, in PEFT's files."""

    directory: Path
    model: Model
    step: int
    digest: str
    """SHA-256 of the checkpoint's manifest; completions carry it in x-policy-digest."""
    base_model_path: str | None
    """Where the service has the weights of the base model: a Hugging Face id, a directory there, or builtin:tiny."""


@dataclass(frozen=True)
class Dataset(Record):
    """Rows for supervised training, stored once by their content."""

    id: str
    url: str
    """Its address in jobs."""
    digest: str
    rows: int
    bytes: int
    created_at: datetime
    ignored_fields: dict[str, int] = field(default_factory=dict)
    """Rows that have a key which training doesn't read, by the key's name."""


@dataclass(frozen=True)
class Job(Record):
    """A training job."""

    id: str
    model_id: str
    state: str
    """queued, running, succeeded, failed or cancelled."""
    attempt: int
    """How often the job was started."""
    error: str | None
    """Why it failed, or why it is retried."""
    waiting_for: str | None
    """The resources that a running job lacks to start training."""
    step: int | None
    """The version that it made."""
    cancel_requested: bool
    num_events: int
    num_gradient_steps: int
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    kind: str = "rl"
    """rl (reinforcement learning), sft (supervised fine-tuning) or dpo (preference pairs)."""
    trained: dict[str, int] | None = None
    """What trains: numbers of groups, trajectories, packed sequences and tokens. None before the training starts."""
    not_trained: dict[str, int] = field(default_factory=dict)
    """The trajectories that don't train, by reason."""
    retokenised_tokens: int | None = None
    """Trained tokens that aren't known to be those that were sampled. None before the training starts."""
    untrainable_tokens: dict[str, int] = field(default_factory=dict)
    """Sampled tokens that can't train, whatever their reward, by reason."""
    warnings: list[str] = field(default_factory=list)
    """Sentences about data that doesn't train as it might seem."""

    @property
    def has_ended(self) -> bool:
        return self.state in ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Event(Record):
    """An event of a job."""

    id: str
    """A cursor: `events(job, after=event.id)` continues after this event."""
    type: str
    """training_started, warning, logprobs_rescored, engine_disagrees, gradient_step, training_ended, training_failed,
    or a newer one."""
    data: dict[str, Any]
    created_at: datetime

    @property
    def ends_job(self) -> bool:
        return self.type in ("training_ended", "training_failed")


@dataclass(frozen=True)
class Artifact(Record):
    """A file that a job left."""

    id: str
    """Its name."""
    size_bytes: int


@dataclass(frozen=True)
class ApiKey(Record):
    id: str
    name: str
    entity: str
    role: str
    """infer, train or admin."""
    created_at: datetime
    revoked_at: datetime | None
    key: str | None = None
    """The secret; only `create_key` returns it."""


@dataclass(frozen=True)
class Health(Record):
    status: str
    """ok or degraded."""
    reasons: list[str]


@dataclass(frozen=True)
class Fault:
    """One fault of a request."""

    loc: tuple[str | int, ...]
    """The place, like `("body", "trajectory_groups", 0, "trajectories", 1, "reward")`."""
    msg: str
    type: str
