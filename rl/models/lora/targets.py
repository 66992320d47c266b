"""Which modules an adapter trains when a client asks for attention, for the MLPs, or for both.

Attention is whatever mixes tokens, also a recurrent layer. All other layers of the decoder count as MLP: dense ones,
shared experts, and the routed experts under their name `experts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from tandem.rl.errors import PolicyError
from tandem.rl.models.base_config import read_config
from tandem.rl.models.base_weights import empty_model
from tandem.rl.models.layers.recurrent_layers import recurrent_layers

ATTENTION, MLP = "attention", "MLP"
_MARKS = ("attn", "attention")


def chosen_modules(path: str | Path, names: Sequence[str], train_attn: bool, train_mlp: bool) -> tuple[str, ...]:
    """Return those of the target modules `names` that lie in the chosen parts of the base model at `path`.

    Raises PolicyError if none is left, or if a name occurs in a part that is to be trained and in another one.
    """
    if train_attn and train_mlp:
        return tuple(names)
    with torch.device("meta"):
        decoder = empty_model(read_config(path)).get_decoder()
    parts = _parts(decoder, names)
    wanted = ATTENTION if train_attn else MLP if train_mlp else None
    if both := [name for name in names if parts[name] == {ATTENTION, MLP}]:
        raise PolicyError(
            f"{', '.join(both)} names layers of attention and of MLPs in this base model, so an adapter can't train "
            "one of them alone. Train both."
        )
    found = tuple(name for name in names if wanted in parts[name])
    if not found:
        raise PolicyError(
            f"No module is left to train: the base model's adapters have {', '.join(names)}, and of these, "
            f"{'nothing is asked for' if wanted is None else f'none is {wanted}'}."
        )
    return found


def _parts(decoder: nn.Module, names: Sequence[str]) -> dict[str, set[str]]:
    """Return in which parts of the decoder the modules with these last parts of their names lie."""
    recurrent = set(map(id, recurrent_layers(decoder)))
    parts: dict[str, set[str]] = {name: set() for name in names}

    def visit(module: nn.Module, part: str) -> None:
        for name, child in module.named_children():
            words = f"{name} {type(child).__name__}".lower()
            own = ATTENTION if id(child) in recurrent or any(mark in words for mark in _MARKS) else part
            if name in parts:
                parts[name].add(own)
            visit(child, own)

    visit(decoder, MLP)
    return parts
