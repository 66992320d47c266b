"""Base models, and modules of them, that vLLM can't serve with LoRA adapters: refused when the engine starts.

vLLM itself says so late and in the log of another process (a model without LoRA), or never (a module of
`lora.target_modules` that it doesn't adapt: learners would train it, and no answer would change).

Importing this module imports no vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def check_architecture(config: PreTrainedConfig) -> None:
    """Raise ValueError if vLLM has no such model, or not with LoRA. Weights needn't be loaded for that."""
    from vllm.model_executor.models import ModelRegistry

    from tandem.rl.models.base_config import shares_prefixes

    for architecture in config.architectures or ():
        registered = ModelRegistry.models.get(architecture)
        if registered is None and not shares_prefixes(config):  # vLLM runs others with transformers' code
            raise ValueError(
                f"vLLM has no {architecture}, whose recurrent layers need kernels of its own. Choose a base model of "
                "another family."
            )
        if registered is not None and not takes_adapters(architecture, registered):
            raise ValueError(
                f"vLLM can't serve {architecture} with LoRA adapters, and every policy version is one. Choose a base "
                "model of another family, or a release of vLLM that adapts this one."
            )


def takes_adapters(architecture: str, registered: Any) -> bool:
    """Return whether a registered model takes adapters. Raises ValueError if it can't be imported."""
    from vllm.model_executor.models import interfaces

    try:
        return bool(interfaces.supports_lora(registered.load_model_cls()))
    except ImportError as error:
        raise ValueError(
            f"vLLM can't import {architecture}: {error} Install that package, or choose a base model of another family."
        ) from error


def check_modules(targets: Sequence[str], adapted: Iterable[str], name: str) -> None:
    """Raise ValueError for a module that learners train and vLLM doesn't adapt."""
    known = set(adapted)
    if ignored := [target for target in targets if target not in known]:
        raise ValueError(
            f"vLLM adapts no {' or '.join(ignored)} in {name}, so the engine would ignore what learners train there. "
            f"Take it out of lora.target_modules; vLLM adapts {', '.join(sorted(known))}."
        )


def adapted_modules(worker: Any) -> list[str]:
    """Return the last parts of the names, as in a checkpoint, of the modules that a vLLM worker adapts."""
    manager = worker.model_runner.lora_manager._adapter_manager
    packed = manager.packed_modules_mapping  # of vLLM's fused modules: qkv_proj has q_proj, k_proj and v_proj
    names = set[str]()
    for module in {name.rpartition(".")[2] for name in manager.modules}:
        names |= {module, *(part.rpartition(".")[2] for part in packed.get(module, ()))}
    return sorted(names)
