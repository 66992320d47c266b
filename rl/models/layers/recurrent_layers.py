"""Layers with a state (Gated DeltaNet, Mamba, short convolutions), which must start anew at every sequence of a row.

Such a layer reads a row from left to right. A mask can't keep it apart from the sequence before, and its state can't
branch, so rows for these models hold whole sequences and share no prefixes. The decoder passes the boundaries on to its
layers under the names that transformers gives them: `cu_seq_lens_q` [N + 1] and `seq_idx` [1, T]. The kernels of
flash-linear-attention and causal-conv1d follow them. The implementation in torch ignores them, so here the layer
computes each sequence by itself.

Shapes: T tokens of a row, N sequences in it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tandem.rl.errors import PolicyError
from tandem.rl.packed_rows import PackedSequence

BOUNDARIES = "cu_seq_lens_q"
RECURRENT = "linear_attention"
"""The kind of all layers with a state, in the configurations of transformers."""
KERNELS = ("fla", "causal_conv1d")


def boundary_inputs(packed: PackedSequence, padding: int = 0) -> dict[str, Tensor]:
    """Return the row's boundaries as keyword arguments of a decoder. Padding at its end counts as a sequence.

    Raises PolicyError for a row with shared prefixes.
    """
    if not torch.equal(packed.segment_ids, packed.parent_ids):
        raise PolicyError(
            "This base model has recurrent layers, but a packed row shares prefixes between sequences. "
            "Pack its rows with shares_prefixes=False."
        )
    segments = F.pad(packed.segment_ids, (0, padding), value=-1)
    _, lengths = torch.unique_consecutive(segments, return_counts=True)
    ends = lengths.cumsum(0)
    index = torch.arange(len(lengths), device=segments.device)
    return {
        BOUNDARIES: F.pad(ends, (1, 0)).int(),
        "seq_idx": index.repeat_interleave(lengths).int()[None],
    }


def recurrent_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers with a state: in every family, those that own a convolution over the sequence."""
    return [module for module in model.modules() if any(isinstance(child, nn.Conv1d) for child in module.children())]


def separate_sequences(decoder: nn.Module, device: torch.device) -> int:
    """Have the recurrent layers start anew at the boundaries that they are given. Return their number."""
    layers = recurrent_layers(decoder)
    if device.type == "cpu" or any(find_spec(kernel) is None for kernel in KERNELS):
        for layer in layers:
            layer.forward = _by_sequence(layer.forward)
    return len(layers)


def _by_sequence(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def separated(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        boundaries = kwargs.pop(BOUNDARIES, None)
        kwargs.pop("seq_idx", None)
        if boundaries is None or len(boundaries) == 2:
            return forward(hidden_states, *args, **kwargs)
        sequences = hidden_states.split(boundaries.diff().tolist(), dim=1)
        return torch.cat([forward(own, *args, **kwargs) for own in sequences], dim=1)

    return separated
