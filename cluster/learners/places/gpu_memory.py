"""Keep a learner to its part of a GPU, beside an engine that has the rest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tandem.cluster.base_models import ResolvedBaseModel

if TYPE_CHECKING:
    import torch

ALLOCATOR = "PYTORCH_ALLOC_CONF"
_OLDER_NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def learner_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment variables of a learner that has a GPU; a setting of the user's own wins.

    Rows have many lengths, and segments that can grow leave no gaps between them. An engine has another process, so its
    sleep mode, whose pool doesn't support them, is not affected.
    """
    if any(environ.get(name) for name in (ALLOCATOR, *_OLDER_NAMES)):
        return {}
    return {ALLOCATOR: "expandable_segments:True"}


def limit_gpu_memory(base: ResolvedBaseModel, device: torch.device) -> None:
    """Print the memory plan, and have torch allocate no more than the learner's part. Does nothing on a CPU.

    Raises PolicyError if there is no room. Call it before the model is loaded.
    """
    if device.type != "cuda":
        return
    import torch

    plan = base.memory_plan(torch.cuda.get_device_properties(device).total_memory, "learner")
    print(plan, flush=True)  # into the log of this process, at every log level
    if plan.is_shared:
        torch.cuda.set_per_process_memory_fraction(min(1.0, plan.learner_fraction), device)
