"""Response bodies of the live state of engines and learners."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from tandem.serve.api.wire.paging import Listed
from tandem.serve.observing.cluster_state import Ending, ReplicaCondition


class GpuMemory(BaseModel):
    """Bytes of the GPU of an engine, whoever uses them."""

    used: int
    total: int


class LearnerGpuMemory(BaseModel):
    """Bytes of torch's allocator on the GPU of a learner."""

    allocated: int
    reserved: int
    peak: int
    """The most that was allocated in the last gradient step."""
    total: int
    """Of the GPU."""


class MemoryPlan(BaseModel):
    """Bytes of a GPU, divided before engine and learner start."""

    gpu: int
    learner: int | None
    engine: int | None
    """Without the KV cache."""
    kv_cache: int
    kv_tokens: int
    max_loras: int
    is_shared: bool
    takes_turns: bool
    """Whether the engine sleeps while the learner computes."""


class LoadedVersion(BaseModel):
    """A version of the caller's that a replica holds."""

    model_id: str
    model: str
    step: int


class EngineReplica(BaseModel):
    id: str
    node: str | None
    condition: ReplicaCondition
    fault: str | None
    """Why the replica doesn't answer completions."""
    started_at: datetime | None
    device: str | None
    """The GPU's name, or cpu. Null, like all that follows, while the replica doesn't answer."""
    requests_running: int | None
    requests_waiting: int | None
    kv_usage: float | None
    """Used fraction of the KV cache."""
    kv_tokens: int | None
    """Tokens that the KV cache holds."""
    prefix_hit_rate: float | None
    """Fraction of prompt tokens found in the cache, since the replica started."""
    slots: int | None
    """Policy versions that one batch can mix."""
    slots_used: int | None
    adapters: int | None
    """Policy versions that the replica holds."""
    adapter_capacity: int | None
    own_versions: list[LoadedVersion]
    """Those of the caller's entity among them."""
    other_versions: int | None
    """The number of those of other entities, and of version 0, which models share."""
    tokens_sampled: int | None
    tokens_prompt: int | None
    """Since the replica started."""
    gpu_memory: GpuMemory | None
    memory_plan: MemoryPlan | None


class EndedReplica(BaseModel):
    id: str
    node: str
    started_at: datetime
    ended_at: datetime | None
    """Null for one that was lost."""
    ending: Ending
    sentence: str
    """Why it ended. Admin keys read the error itself."""


class EngineSettings(BaseModel):
    replicas: int
    dtype: str
    tensor_parallel_size: int
    max_model_len: int | None
    """Tokens of a sequence. Null before an engine has started, if it isn't configured."""
    max_num_seqs: int | None
    """Requests in a batch. Null before an engine has started, if it isn't configured."""
    max_loras: int | None
    max_cpu_loras: int
    sleep: bool


class Engines(Listed):
    """The engines of a base model, which is the id."""

    num_wanted: int
    num_running: int
    fault: str | None
    """Why not all of them run."""
    replicas: list[EngineReplica]
    num_restarts: int
    """Replicas among `ended` that died or were lost."""
    ended: list[EndedReplica]
    """The last replicas that ended, the newest first."""
    settings: EngineSettings


class Learner(BaseModel):
    rank: int
    node: str
    gpus: list[str]
    is_answering: bool
    device: str | None
    """The GPU's name, or cpu."""
    tokens_per_s: float | None
    """Of the last gradient step."""
    mfu: float | None
    """Fraction of the GPU's peak in the last gradient step, where the peak is known."""
    memory: LearnerGpuMemory | None


class OwnJob(BaseModel):
    job_id: str
    model_id: str


class Publications(BaseModel):
    """Seconds from the last gradient step of a job until its version was durable and the engines had it."""

    count: int
    last_s: float | None
    p50_s: float | None
    p95_s: float | None


class LearnerSettings(BaseModel):
    count: int
    shard: int
    jobs_at_once: int
    device: str
    dtype: str
    lora_r: int
    lora_alpha: float
    lora_target_modules: list[str]


class Learners(Listed):
    """The learners of a base model, which is the id."""

    state: Literal["running", "waiting", "not_started", "not_answering"]
    sentence: str
    """What the state means now."""
    waiting_for: str | None
    alarm: str | None
    last_error: str | None
    """Of the coordinator outside a job, for admin keys alone."""
    learners: list[Learner]
    own_jobs: list[OwnJob]
    """Jobs of the caller's entity that run."""
    other_jobs: int
    """The number of those of other entities."""
    publications: Publications
    settings: LearnerSettings
