"""Mixtures of experts beside LoRA on a CPU.

Once LoRA is enabled, vLLM 0.32 selects Triton's kernels for the experts of a model, also where there is no Triton and
no adapter on the experts. Here a CPU keeps its own kernels. Adapters on experts stay out of reach: `servable` refuses
them.

Importing this module imports no vLLM. vLLM asks it for `Worker` (`--worker-cls`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "Worker":
        return _worker()
    raise AttributeError(f"module {__name__} has no attribute {name}")


@cache
def _worker() -> type:
    """Return vLLM's worker on a CPU, with its own kernels for experts."""
    from vllm.model_executor.layers.fused_moe import unquantized_fused_moe_method
    from vllm.model_executor.layers.fused_moe.oracle import unquantized
    from vllm.v1.worker.cpu_worker import CPUWorker

    def select(moe_config: Any) -> Any:
        return unquantized.select_unquantized_moe_backend(replace(moe_config, is_lora_enabled=False))

    class Worker(CPUWorker):
        def load_model(self, *args: Any, **kwargs: Any) -> None:
            vars(unquantized_fused_moe_method)["select_unquantized_moe_backend"] = select
            super().load_model(*args, **kwargs)

    return Worker
