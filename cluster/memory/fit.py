"""Find the settings with which a base model fits on some GPUs, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tandem.cluster.memory.plan import MemoryPlan, Tenant, plan_memory
from tandem.cluster.memory.refusal import NoRoomError

PARTS = (1, 2, 4, 8)
"""Learners that share the weights, and GPUs of an engine, that are tried."""
LENGTHS = (32_768, 16_384, 8_192, 4_096)


@dataclass(frozen=True)
class Fit:
    """Settings with which a learner group and one engine replica fit."""

    shard: int
    """Learners that share the base weights, each on a GPU."""
    tensor_parallel_size: int
    shares: bool
    """Whether the engine has its GPU together with a learner."""
    max_model_len: int
    kv_tokens: int
    """Tokens in the KV cache of the engine."""

    @property
    def num_gpus(self) -> int:
        return self.shard if self.shares else self.shard + self.tensor_parallel_size

    def __str__(self) -> str:
        settings = [f"learners.shard: {self.shard} (and as many learners)"] if self.shard > 1 else []
        if self.tensor_parallel_size > 1:
            settings.append(f"engine.tensor_parallel_size: {self.tensor_parallel_size}")
        return ", ".join([*settings, f"max_model_len: {self.max_model_len}"])


def find_fit(tenant: Tenant, gpu_bytes: int, num_gpus: int, lengths: Sequence[int] = LENGTHS) -> Fit | None:
    """Return the settings for the longest sequences, with the fewest GPUs; None if the model doesn't fit.

    Learner and engine share a GPU only if there are too few for both. An engine of several GPUs never shares.
    """
    for length in sorted(lengths, reverse=True):
        for shard, parallel, shares in _divisions(num_gpus):
            if plan := _try(tenant, gpu_bytes, length, shard, parallel, shares):
                return Fit(shard, parallel, shares, length, plan.kv_tokens)
    return None


def _divisions(num_gpus: int) -> Iterator[tuple[int, int, bool]]:
    """Yield shards, GPUs of the engine and whether it shares one, those with the fewest parts first."""
    pairs = sorted((shard + parallel, shard, parallel) for shard in PARTS for parallel in PARTS)
    for together, shard, parallel in pairs:
        if together <= num_gpus:
            yield shard, parallel, False
        elif parallel == 1 and shard <= num_gpus:
            yield shard, parallel, True


def _try(tenant: Tenant, gpu_bytes: int, length: int, shard: int, parallel: int, shares: bool) -> MemoryPlan | None:
    """Return the plan of the engine's GPU, or None if there or on a learner's there is no room."""
    base = tenant.base
    learners = base.learners.model_copy(update={"shard": shard, "count": max(shard, base.learners.count)})
    engine = base.engine.model_copy(update={"tensor_parallel_size": parallel, "num_gpus": None})
    changed = base.model_copy(update={"learners": learners, "engine": engine})
    tried = replace(tenant, base=changed, max_model_len=length)
    try:
        if shares:
            return plan_memory(gpu_bytes, tried, tried)
        plan_memory(gpu_bytes, learner=tried)
        return plan_memory(gpu_bytes, engine=tried)
    except NoRoomError:
        return None
