"""Which base models an engine can serve with adapters, as far as their configuration shows it.

vLLM itself refuses families without LoRA when an engine starts. These rules are about faults that would show only with
the first request, or never. Importing this imports no vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tandem.rl.errors import PolicyError
from tandem.rl.models.lora.adapter_config import EXPERTS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from tandem.cluster.config import BaseModelConfig

WIDER_WINDOWS = ("cohere2", "cohere2_moe")
"""Families whose windows reach one token farther in vLLM 0.32 (`sliding_window + 1`) than in transformers 5.19."""
HARMONY = ("gpt_oss", "openai")
"""A family whose messages vLLM renders and parses itself, and the only tool_call_parser that it starts with then."""
OTHER_NAMES = ("mixtral",)
"""Families whose layer of experts has another name in vLLM than in transformers, so that adapters wouldn't reach it."""

ABSENT = ("bamba",)
"""Families that vLLM 0.32 has dropped, and can't run with transformers' code because of their recurrent layers."""

STATES_ON_CPU = ("granitemoehybrid",)
"""Families with recurrent layers (Mamba 2) that vLLM computes on a CPU in float32."""


def check_servable(base: BaseModelConfig, config: PreTrainedConfig) -> None:
    """Raise PolicyError for a base model that the engine can't serve as it is trained."""
    from tandem.rl.models.base_config import shares_prefixes, text_config

    family = text_config(config).model_type
    if family in ABSENT:
        raise PolicyError(f"vLLM doesn't have {family} any more. Choose a base model of another family.")
    is_on_cpu = base.engine.num_gpus == 0  # set once the cluster's GPUs are known
    if EXPERTS in base.largest_lora.target_modules:
        if is_on_cpu:
            raise PolicyError(
                "vLLM has no kernels for adapters on experts on a CPU. Give the engine a GPU, or remove experts from "
                "lora.target_modules."
            )
        if family in OTHER_NAMES:
            raise PolicyError(
                f"vLLM can't load adapters on the experts of {family}, which it names otherwise than transformers. "
                f"Remove experts from lora.target_modules."
            )
    window = getattr(text_config(config), "sliding_window", None)
    if family in WIDER_WINDOWS and window and (base.max_model_len is None or base.max_model_len > window):
        raise PolicyError(
            f"vLLM's windows of {family} reach one token farther than those that learners train with. "
            f"Set max_model_len to at most {window}, so that no sequence leaves the window."
        )
    if family == HARMONY[0] and base.engine.tool_call_parser != HARMONY[1]:
        raise PolicyError(
            f"vLLM parses the tool calls of {family} with a parser of its own. "
            f"Set engine.tool_call_parser to {HARMONY[1]}."
        )
    if is_on_cpu and not shares_prefixes(config) and family not in STATES_ON_CPU:
        raise PolicyError(
            f"vLLM can't serve {family} with adapters on a CPU: its kernels for recurrent layers need a GPU, or other "
            f"dtypes and packages than the rest. Give the engine a GPU."
        )
