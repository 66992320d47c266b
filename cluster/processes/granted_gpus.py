"""The GPUs that Ray has granted to this process, and that it may therefore use."""

from __future__ import annotations

import os

CUDA_VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"


def granted_gpus() -> list[str] | None:
    """Return the ids of the GPUs that Ray has granted to this actor. None outside an actor: Ray grants it nothing."""
    import ray

    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    if context.get_actor_id() is None:
        return None
    return context.get_accelerator_ids()["GPU"]


def hide_other_gpus() -> None:
    """Let an actor that was granted no GPU see none, and neither its child processes.

    Ray itself limits only actors that were granted some: the others see all GPUs of the node, and a library that looks
    for one would take memory from a learner or an engine. CUDA reads the variable when a process uses it first, so
    call this before. It isn't part of the runtime environment, which actors that this one starts would inherit.
    """
    if granted_gpus() == []:
        os.environ[CUDA_VISIBLE_DEVICES] = ""
