"""Mixtures of experts beside LoRA on a CPU.

Once LoRA is enabled, vLLM 0.32 selects Triton's kernels for the experts of a model, also where there is no Triton and
no adapter on the experts. Here a CPU keeps its own kernels. Adapters on experts stay out of reach: `servable` refuses
them.

vLLM alone imports this module, in its worker processes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vllm.model_executor.layers.fused_moe import unquantized_fused_moe_method
from vllm.model_executor.layers.fused_moe.oracle import unquantized
from vllm.v1.worker.cpu_worker import CPUWorker


class Worker(CPUWorker):
    """vLLM's worker on a CPU (`--worker-cls`)."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        vars(unquantized_fused_moe_method)["select_unquantized_moe_backend"] = _select_without_lora
        super().load_model(*args, **kwargs)


def _select_without_lora(moe_config: Any) -> Any:
    return unquantized.select_unquantized_moe_backend(replace(moe_config, is_lora_enabled=False))
