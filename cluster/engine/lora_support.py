"""Base models, and modules of them, that vLLM can't serve with LoRA adapters: refused when the engine starts.

vLLM itself says so late and in the log of another process (a model without LoRA), or never (a module of
`lora.target_modules` that it doesn't adapt: learners would train it, and no answer would change).

Importing this module imports no vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def check_architecture(model_path: str) -> None:
    """Raise ValueError if vLLM has the model, but not with LoRA. Weights needn't be loaded for that."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.transformers_utils.config import get_config

    for architecture in get_config(model_path, trust_remote_code=False).architectures or ():
        if supports_lora(ModelRegistry.models.get(architecture)) is False:
            raise ValueError(
                f"vLLM can't serve {architecture} with LoRA adapters, and every policy version is one. Choose a base "
                "model of another family, or a release of vLLM that adapts this one."
            )


def supports_lora(registered: Any) -> bool | None:
    """Return whether a registered model takes adapters; None if only its start can tell."""
    from vllm.model_executor.models import interfaces

    try:
        model = registered.load_model_cls()
    except Exception:  # not registered, or it needs a library that isn't installed
        return None
    return interfaces.supports_lora(model)


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
