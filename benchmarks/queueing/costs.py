"""The parameters of a simulated service: costs of its parts in seconds, its size, and its load."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from tandem.cluster.config import CoordinatorConfig, LearnersConfig
from tandem.cluster.jobs import coordinator
from tandem.serve.api import version_watch

RENEW_S = 2.0
"""tandem.cluster.jobs.lease.MAX_INTERVAL_S: the period at which a running job's lease is renewed."""


@dataclass(frozen=True)
class Linear:
    """A cost with a fixed and a proportional part."""

    fixed: float
    each: float

    def of(self, amount: float) -> float:
        return self.fixed + self.each * amount


@dataclass(frozen=True)
class Costs:
    """Costs of one base model's traffic. Token counts are of completions unless stated otherwise."""

    proxy: Linear
    """A completion request in Serve's proxy, which passes it to an engine, by the tokens of its answer."""
    proxy_small_s: float
    """A small request in the proxy."""
    api_small_s: float
    api_poll_s: float
    """One store read for the clients that wait for a version."""
    front: Linear
    """A completion request in an engine replica's process (vLLM's OpenAI layer), by the tokens of its answer."""
    engine_tokens_per_s: float
    """The limit for one engine that decodes very many sequences at once."""
    engine_half: float
    """Sequences at half of that speed: n of them get engine_tokens_per_s * n / (n + engine_half)."""
    engine_max_seqs: int
    adapter_load_s: float
    """From files on the engine's node to a loaded adapter."""
    receive_token_s: float
    """A job's token in the API replica that receives it (inflating, splitting, storing)."""
    prepare: Linear
    """A trajectory by its tokens, from stored payload to packed sequences: once to accept it, once to train it."""
    learner_token_s: float
    """Forward and backward of one token on one learner."""
    step_s: float
    """A gradient step without tokens and all-reduce: calls to learners, optimizer, metrics."""
    allreduce_latency_s: float
    """One hop of a ring all-reduce."""
    allreduce_bytes_per_s: float
    gradient_bytes: float
    checkpoint_bytes: float
    """Adapter and optimizer state, as saved and read."""
    pulled_bytes: float
    """Pulled by each engine replica for a version: the adapter alone."""
    save: Linear
    """Saving a checkpoint by its bytes: hash, write, sync."""
    load: Linear
    """Loading a checkpoint by its bytes: read and verify."""
    store_write_s: float
    """One write transaction without contention."""
    job_small_s: float = 0.0
    """The rest of a job: calls between coordinator, preparation and learners."""

    def slowed(self, factor: float) -> Costs:
        """Return the costs on processes that get a core for 1 / factor of the time in which they could use one."""
        slowed: dict[str, Any] = {
            field.name: _slowed(field.name, getattr(self, field.name), factor) for field in fields(self)
        }
        return replace(self, **slowed)


def _slowed(name: str, value: float | Linear, factor: float) -> float | Linear:
    if isinstance(value, Linear):
        return Linear(value.fixed * factor, value.each * factor)
    if name.endswith("_per_s"):
        return value / factor
    return value * factor if name.endswith("_s") else value


@dataclass(frozen=True)
class Fleet:
    """The size of the service."""

    engines: int = 1
    learners: int = 1
    """Per base model."""
    base_models: int = 1
    """Engines are divided evenly among base models."""
    api_replicas: int = 1
    proxies: int = 1
    store: Literal["sqlite", "postgresql"] = "sqlite"
    node_bytes_per_s: float = 1.25e9
    """From the artifact store into one node."""
    artifact_bytes_per_s: float | None = None
    """Out of the artifact store to all nodes together; None: each gets `node_bytes_per_s`. 0: files needn't move."""
    jobs_at_once: int = LearnersConfig().jobs_at_once
    """Per base model."""
    kept_state_bytes: float = LearnersConfig().kept_state_bytes
    """Per learner, for the states of models that it trained before."""

    @property
    def store_writers(self) -> int:
        """Return the number of concurrent writes. PostgreSQL allows more than 16, but other parts limit first."""
        return {"sqlite": 1, "postgresql": 16}[self.store]

    @property
    def claim_poll_s(self) -> float:
        """Return the period at which a coordinator looks for a job. SQLite shows cheaply that it has changed."""
        return {"sqlite": coordinator.CHANGE_POLL_S, "postgresql": CoordinatorConfig().poll_s}[self.store]

    @property
    def version_poll_s(self) -> float:
        """Return the period at which an API replica looks for awaited versions."""
        return {"sqlite": version_watch.CHANGE_POLL_S, "postgresql": version_watch.VERSION_POLL_S}[self.store]


@dataclass(frozen=True)
class Workload:
    """RL runs, each on its own model, in a closed loop like `tandem train`: sample a batch, post it, and start the
    next one as soon as the policy lag allows."""

    runs: int
    groups: int
    """Per batch; each is one request for `completions`."""
    completions: int
    tokens: float
    """Mean per completion."""
    tokens_cv: float
    """Standard deviation over mean of a lognormal distribution; 0: all equal."""
    prompt_tokens: int
    packed_length: int
    max_policy_lag: int = 0

    @property
    def rollouts_per_job(self) -> int:
        return self.groups * self.completions
