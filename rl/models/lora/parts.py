"""The part of a layer that an adapted module belongs to, by the last part of its name.

In the families of transformers, these names are those of MLPs alone; `c_proj` of GPT-2, which attention has too, is the
only exception. Importing this needs no torch.
"""

from tandem.rl.models.lora.adapter_config import EXPERTS

MLP_MODULES = frozenset(
    {
        *("gate_proj", "up_proj", "down_proj", "gate_up_proj"),
        *("fc1", "fc2", "w1", "w2", "w3", "c_fc", "c_proj", "dense_h_to_4h", "dense_4h_to_h"),
        *(EXPERTS, "shared_expert_gate"),
    }
)
"""Modules of MLPs, dense ones and experts. All others that can be adapted mix tokens, as attention does."""
