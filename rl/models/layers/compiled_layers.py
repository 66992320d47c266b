"""Decoder layers compiled one by one: norms, SwiGLU and rotary embeddings become few kernels.

All layers of a kind share their code, and the row length is symbolic, so a model has few graphs: with and without
gradient, and one for the first layer, whose input has none. Gradient checkpointing stays around the compiled layer.
"""

from __future__ import annotations

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from tandem.rl.models.layers.any_length import compile_for_any_length


def compile_layers(decoder: nn.Module) -> int:
    """Let every decoder layer compile itself at its first call, and return their number.

    The function is compiled and not the module, so that hooks of a layer still run, outside of its graph.
    """
    layers = [module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.forward = compile_for_any_length(layer.forward)  # type: ignore[method-assign]
    return len(layers)
