"""What a simulated service is made of: costs of its parts in seconds, its size, and the work it is given."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from tandem.cluster.config import LearnersConfig

CLAIM_POLL_S = 0.2
"""CoordinatorConfig.poll_s: an idle coordinator looks for a job so often."""
VERSION_POLL_S = 0.2
"""tandem.serve.api.models.VERSION_POLL_S: a waiting client's replica looks for a new version so often."""
RENEW_S = 2.0
"""tandem.cluster.jobs.lease.MAX_INTERVAL_S: a running job's lease is renewed so often."""


@dataclass(frozen=True)
class Linear:
    """A cost with a fixed part and one in proportion."""

    fixed: float
    each: float

    def of(self, amount: float) -> float:
        return self.fixed + self.each * amount


@dataclass(frozen=True)
class Costs:
    """Of one base model's traffic. Token counts are of completions, if nothing else is said."""

    proxy: Linear
    """Of a completion request in Serve's proxy, by its answer's tokens."""
    api: Linear
    """The same in an API replica."""
    proxy_small_s: float
    """Of a small request in the proxy."""
    api_small_s: float
    api_poll_s: float
    """Of one look at the store for a client that waits for a version."""
    front: Linear
    """Of a completion request in an engine replica's own process (vLLM's OpenAI layer), by its answer's tokens."""
    engine_tokens_per_s: float
    """Of one engine that decodes very many sequences at once."""
    engine_half: float
    """Sequences at which it has half of that speed: n of them get engine_tokens_per_s * n / (n + engine_half)."""
    engine_max_seqs: int
    adapter_load_s: float
    """From files on the engine's node to a loaded adapter."""
    receive_token_s: float
    """Of a job's token in the API replica that receives it (inflating, splitting, storing)."""
    prepare: Linear
    """Of a trajectory by its tokens, from stored payload to packed sequences: once to accept it, once to train it."""
    learner_token_s: float
    """Forward and backward of one token on one learner."""
    step_s: float
    """Of a gradient step beside tokens and all-reduce: calls to learners, optimizer, metrics."""
    allreduce_latency_s: float
    """Of one hop of a ring all-reduce."""
    allreduce_bytes_per_s: float
    gradient_bytes: float
    checkpoint_bytes: float
    """Adapter and optimizer, as they are saved and read."""
    pulled_bytes: float
    """Of a version, by each engine replica. It pulls the adapter alone."""
    save: Linear
    """Of a checkpoint by its bytes: hash, write, sync."""
    load: Linear
    """The same to read and verify it."""
    store_write_s: float
    """One write transaction while no other runs."""
    job_small_s: float = 0.0
    """Of a job beside everything else: calls between coordinator, preparation and learners."""

    def slowed(self, factor: float) -> Costs:
        """On processes that get a core for 1 / factor of the time in which they could use one."""
        return replace(self, **{field.name: _slowed(field.name, getattr(self, field.name), factor)
                                for field in fields(self)})  # fmt: skip


def _slowed(name: str, value: float | Linear, factor: float) -> float | Linear:
    if isinstance(value, Linear):
        return Linear(value.fixed * factor, value.each * factor)
    if name.endswith("_per_s"):
        return value / factor
    return value * factor if name.endswith("_s") else value


@dataclass(frozen=True)
class Fleet:
    """How large the service is."""

    engines: int = 1
    learners: int = 1
    """Of each base model's group."""
    base_models: int = 1
    """Engines are split evenly over them."""
    api_replicas: int = 1
    proxies: int = 1
    store: Literal["sqlite", "postgresql"] = "sqlite"
    node_bytes_per_s: float = 1.25e9
    """From the artifact store into one node."""
    artifact_bytes_per_s: float | None = None
    """Out of the artifact store to all nodes together; None: each gets `node_bytes_per_s`. 0: files needn't move."""
    kept_state_bytes: float = LearnersConfig().kept_state_bytes
    """Of each learner, for the states of models that it has trained before."""

    @property
    def store_writers(self) -> int:
        """Transactions that write at the same time. PostgreSQL takes more than 16, but then other things end first."""
        return {"sqlite": 1, "postgresql": 16}[self.store]


@dataclass(frozen=True)
class Workload:
    """RL runs, each on its own model, in a closed loop like `tandem train`: sample a batch, post it, go on with the
    next one as soon as the policy lag allows."""

    runs: int
    groups: int
    """Of a batch, each one request with `completions`."""
    completions: int
    tokens: float
    """Mean of a completion."""
    tokens_cv: float
    """Its standard deviation over its mean, of a lognormal distribution; 0: all alike."""
    prompt_tokens: int
    packed_length: int
    max_policy_lag: int = 0

    @property
    def rollouts_per_job(self) -> int:
        return self.groups * self.completions
