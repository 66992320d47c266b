"""Which share of a GPU each learner and engine gets, where the configuration leaves it open."""

from __future__ import annotations

from tandem.cluster.config import BaseModelConfig, TandemConfig

SHARED_MEMORY = 0.45  # of a GPU's memory for an engine that shares it with learners
OWN_MEMORY = 0.9


def place(config: TandemConfig, num_gpus: int) -> TandemConfig:
    """Fills in every unset `num_gpus`, for a cluster with so many GPUs.

    None: everything runs on CPUs. As many as there are learners and engines: each gets its own. Fewer: the actors of
    all base models share, and each engine bounds its memory so that a learner fits beside it.
    """
    actors = [(base, part) for base in config.base_models for part in _parts(base)]
    unset = sum(count for base, (settings, count) in actors if settings.num_gpus is None)
    taken = sum(count * settings.num_gpus for base, (settings, count) in actors if settings.num_gpus is not None)
    free = max(0.0, num_gpus - taken)
    if unset == 0 or free == 0:
        share = 0.0
    else:
        share = 1.0 if free >= unset else max(0.01, int(100 * free / unset) / 100)
    return config.model_copy(update={"base_models": tuple(_with_share(base, share) for base in config.base_models)})


def _parts(base: BaseModelConfig) -> list[tuple]:
    return [(base.learners, base.learners.count), (base.engine, base.engine.replicas)]


def _with_share(base: BaseModelConfig, share: float) -> BaseModelConfig:
    learners, engine = base.learners, base.engine
    if learners.num_gpus is None:
        learners = learners.model_copy(update={"num_gpus": share})
    if engine.num_gpus is None:
        engine = engine.model_copy(update={"num_gpus": share})
    if engine.num_gpus > 0 and engine.gpu_memory_utilization is None and engine.kv_cache_memory_bytes is None:
        memory = OWN_MEMORY if engine.num_gpus >= 1 else min(SHARED_MEMORY, engine.num_gpus * OWN_MEMORY)
        engine = engine.model_copy(update={"gpu_memory_utilization": memory})
    return base.model_copy(update={"learners": learners, "engine": engine})
