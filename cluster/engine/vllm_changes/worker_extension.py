"""What Tandem adds to vLLM's worker (`--worker-extension-cls`): the engine calls it in each process of a replica.

Importing this module imports no vLLM. vLLM asks it for `Extension`.
"""

from __future__ import annotations

from typing import Any

from tandem.cluster.engine.samples.mixed_logprobs import MixedLogprobs
from tandem.cluster.engine.samples.prompt_scores import PromptScores
from tandem.cluster.engine.setup.lora_support import adapted_modules
from tandem.cluster.engine.vllm_changes.cpu_lora import fix_cpu_lora
from tandem.cluster.engine.vllm_changes.process_groups import close_lone_groups
from tandem.cluster.engine.vllm_changes.text_only import import_models_without_torchvision


def __getattr__(name: str) -> Any:
    if name == "Extension":  # asked for in each of those processes, before the model is imported there
        import_models_without_torchvision()
        return WorkerExtension
    raise AttributeError(f"module {__name__} has no attribute {name}")


class WorkerExtension:
    """A base class that vLLM adds to its worker; `collective_rpc` calls its methods."""

    model_runner: Any  # the worker's

    def close_lone_groups(self) -> None:
        close_lone_groups()

    def fix_cpu_lora(self) -> bool:
        return fix_cpu_lora()

    def extend_logprobs(self) -> bool:
        """Return False if the model runner can't score what `PromptScores` does."""
        MixedLogprobs.install(self.model_runner)
        return PromptScores.install(self.model_runner)

    def adapted_modules(self) -> list[str]:
        return adapted_modules(self)
