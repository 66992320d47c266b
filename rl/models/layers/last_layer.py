"""The last decoder layer, computed only where a prediction is wanted.

Every layer below must compute the whole row, because later tokens attend to it. Nothing attends to the outputs of the
last layer, so a token that predicts nothing trained, like those of a prompt, needs only its key and value there:
no query, no attention, no output projection, no MLP.

This uses the interface of key-value caches, which the families of transformers share: the layer runs on the wanted rows
as if they were new tokens, and its cache holds the keys and values of the others. `can_prune` tries it on a model.

Shapes: T tokens of a packed row, N wanted positions, R >= N rows that the layer computes, H hidden.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers.modeling_layers import GradientCheckpointingLayer

from tandem.rl.models.attention.block_table import restrict
from tandem.rl.models.sharding import reset_after_error

SHORT_GAP = 16
"""Rows between wanted ones that cost less than more blocks of attention would."""
LEAST_PRUNED = 128
"""With fewer rows to leave out, pruning costs more than it saves (`benchmarks/LOG.md`)."""
_CACHE_NAMES = ("past_key_values", "layer_past")


def hidden_at(decoder: nn.Module, inputs: Mapping[str, Any], wanted: Tensor, prune: bool) -> Tensor:
    """Return the decoder's outputs [N, H] at the indices `wanted` [N], sorted, of a row with a table of blocks.

    `prune`: leave out, in the last layer, rows that aren't wanted.
    """
    num_tokens = inputs["input_ids"].shape[1]
    rows = _without_short_gaps(wanted, num_tokens) if prune and wanted.numel() else wanted
    if not prune or rows.numel() in (0, num_tokens):
        hidden: Tensor = decoder(**inputs, use_cache=False)[0][0]
        return hidden[wanted]
    hook = _last_layer(decoder).register_forward_pre_hook(_select(rows), with_kwargs=True)
    try:
        hidden = decoder(**inputs, use_cache=False)[0][0]
    finally:
        hook.remove()
    return hidden[torch.searchsorted(rows, wanted)]


@torch.no_grad()
def can_prune(decoder: nn.Module, inputs: Mapping[str, Any], wanted: Tensor) -> bool:
    """Return whether pruning works on this model and changes nothing at the `wanted` positions of a row."""
    if decoder.training and getattr(decoder, "gradient_checkpointing", False):
        return False  # transformers takes the cache away
    try:
        whole = hidden_at(decoder, inputs, wanted, prune=False)
        pruned = hidden_at(decoder, inputs, wanted, prune=True)
    except Exception:  # a family whose layers or decoder take or return something else
        reset_after_error(decoder)
        return False
    tolerance = torch.finfo(whole.dtype).eps ** 0.5 * whole.abs().max().item()
    return pruned.shape == whole.shape and torch.allclose(pruned, whole, rtol=0, atol=tolerance)


def _last_layer(decoder: nn.Module) -> nn.Module:
    return [module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)][-1]


def _without_short_gaps(wanted: Tensor, num_tokens: int) -> Tensor:
    """Return the R rows: `wanted`, and the rows between two of them that are close."""
    index = torch.arange(num_tokens, device=wanted.device)
    before = torch.searchsorted(wanted, index, right=True) - 1
    after = torch.searchsorted(wanted, index)
    inside = (before >= 0) & (after < wanted.numel())
    is_close = wanted[after.clamp(max=wanted.numel() - 1)] - wanted[before.clamp(min=0)] <= SHORT_GAP
    return (inside & is_close).nonzero().squeeze(1)


def _select(rows: Tensor) -> Callable[[nn.Module, Any, Any], tuple[Any, Any]]:
    """Return a hook that gives the layer only `rows` [R] of its inputs, and the keys and values of the others."""

    def before(layer: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        signature = inspect.signature(layer.forward)
        given = dict(signature.bind(*args, **kwargs).arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(parameter.name, {})
        (cache_name,) = (name for name in _CACHE_NAMES if name in signature.parameters)
        num_tokens = given["hidden_states"].shape[1]
        is_other = torch.ones(num_tokens, dtype=torch.bool, device=rows.device).index_fill(0, rows, False)
        others = is_other.nonzero().squeeze(1)

        def at(index: Tensor) -> dict[str, Any]:
            def pick(value: Any) -> Any:
                of_tokens = isinstance(value, Tensor) and value.dim() > 1 and value.shape[1] == num_tokens
                return value.index_select(1, index) if of_tokens else value

            picked: dict[str, Any] = tree_map(pick, given)
            return picked

        keys = _KeysOfOthers(torch.cat([others, rows]).argsort())
        try:
            layer.forward(**{**at(others), cache_name: keys})
        except _Known:
            pass
        table = restrict(given["attention_mask"], rows)
        return (), {**at(rows), cache_name: keys, "attention_mask": table}

    return before


class _Known(Exception):
    """Ends the layer's computation of rows of which only keys and values are used."""


class _KeysOfOthers:
    """A key-value cache for one layer: its first update is from the other rows, its second from the wanted ones."""

    def __init__(self, order: Tensor) -> None:
        self._order = order
        self._others: tuple[Tensor, Tensor] | None = None

    def update(self, key: Tensor, value: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the keys and values [.., T, D] of the whole row."""
        if self._others is None:
            self._others = (key, value)
            raise _Known
        return self._whole(self._others[0], key), self._whole(self._others[1], value)

    def _whole(self, others: Tensor, own: Tensor) -> Tensor:
        return torch.cat([others, own], dim=-2).index_select(-2, self._order)
