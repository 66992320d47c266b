"""Assign GPUs to learners and engines whose configuration sets none."""

from __future__ import annotations

from tandem.cluster.config import BaseModelConfig, TandemConfig

SHARED_MEMORY = 0.45  # fraction of a GPU's memory for an engine that shares it with learners
OWN_MEMORY = 0.9  # for an engine that has it alone


def place(config: TandemConfig, num_gpus: int) -> TandemConfig:
    """Set every unset `num_gpus`, for a cluster with `num_gpus` GPUs.

    Without GPUs, everything runs on CPUs. With at least as many GPUs as learners and engines, each gets its own. With
    fewer, all of them share, and each engine limits its memory so that a learner fits beside it.
    """
    wanted = [part for base in config.base_models for part in _wanted_gpus(base)]
    unset = sum(count for num_gpus_each, count in wanted if num_gpus_each is None)
    taken = sum(count * num_gpus_each for num_gpus_each, count in wanted if num_gpus_each is not None)
    free = max(0.0, num_gpus - taken)
    if unset == 0 or free == 0:
        share = 0.0
    else:
        share = 1.0 if free >= unset else max(0.01, int(100 * free / unset) / 100)
    return config.model_copy(update={"base_models": tuple(_with_share(base, share) for base in config.base_models)})


def _wanted_gpus(base: BaseModelConfig) -> list[tuple[float | None, int]]:
    """Return GPUs per actor and the number of actors, for the learners and the engine."""
    return [(base.learners.num_gpus, base.learners.count), (base.engine.num_gpus, base.engine.replicas)]


def _with_share(base: BaseModelConfig, share: float) -> BaseModelConfig:
    learners, engine = base.learners, base.engine
    if learners.num_gpus is None:
        learners = learners.model_copy(update={"num_gpus": share})
    num_gpus = share if engine.num_gpus is None else engine.num_gpus
    engine = engine.model_copy(update={"num_gpus": num_gpus})
    if num_gpus > 0 and engine.gpu_memory_utilization is None and engine.kv_cache_memory_bytes is None:
        memory = OWN_MEMORY if num_gpus >= 1 else min(SHARED_MEMORY, num_gpus * OWN_MEMORY)
        engine = engine.model_copy(update={"gpu_memory_utilization": memory})
    return base.model_copy(update={"learners": learners, "engine": engine})
