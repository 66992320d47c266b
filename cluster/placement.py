"""Assign GPUs to learners and engines whose configuration sets none."""

from __future__ import annotations

from tandem.cluster.config import BaseModelConfig, TandemConfig


def place(config: TandemConfig, num_gpus: int) -> TandemConfig:
    """Set every unset `num_gpus`, for a cluster with `num_gpus` GPUs.

    Without GPUs, everything runs on CPUs. With at least as many GPUs as learners and engines, each gets its own. With
    fewer, all of them share, and a memory plan divides each GPU (`tandem.cluster.memory`).
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
    return base.model_copy(update={"learners": learners, "engine": engine})
