"""The last layer computed where predictions are wanted, against the whole layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import packed_group
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from tandem.rl.models.attention.masks import forward_inputs
from tandem.rl.models.layers.last_layer import SHORT_GAP, can_prune, hidden_at
from tandem.rl.policy import Policy

PROMPT = 3 * SHORT_GAP
PACKED = packed_group(PROMPT, [3 * SHORT_GAP, 9, 14])
TRAINED = PACKED.loss_mask.nonzero().squeeze(1) - 1
APART = torch.tensor([PROMPT + 2, PROMPT + 5, PROMPT + 2 * SHORT_GAP, PACKED.num_tokens - 1])


def decoder_at(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, attn_implementation="segments").get_decoder()


def rows_of_last_layer(decoder: Any, wanted: Tensor, prune: bool) -> int:
    sizes = []
    hook = decoder.layers[-1].mlp.register_forward_hook(lambda module, args, out: sizes.append(out.shape[1]))
    hidden_at(decoder, forward_inputs(PACKED, "segments", torch.float32), wanted, prune)
    hook.remove()
    (size,) = sizes
    return size


@pytest.mark.parametrize("wanted", [TRAINED, APART, APART[:1]], ids=["trained", "apart", "one"])
def test_outputs_and_gradients_are_those_of_the_whole_layer(qwen3_path: Path, wanted: Tensor) -> None:
    found = []
    for prune in (False, True):
        decoder = decoder_at(qwen3_path)
        hidden = hidden_at(decoder, forward_inputs(PACKED, "segments", torch.float32), wanted, prune)
        weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3))
        (hidden * weights).sum().backward()
        found.append([hidden.detach(), *(p.grad for p in decoder.parameters())])
    for whole, pruned in zip(*found, strict=True):
        torch.testing.assert_close(pruned, whole, rtol=0, atol=1e-5 * whole.abs().max().item())


def test_rows_that_predict_nothing_are_left_out(qwen3_path: Path) -> None:
    decoder = decoder_at(qwen3_path)
    assert rows_of_last_layer(decoder, TRAINED, prune=False) == PACKED.num_tokens
    assert rows_of_last_layer(decoder, TRAINED, prune=True) == PACKED.num_tokens - PROMPT - 1
    # Of rows that are wanted apart, those between the first two are computed too, because they are close.
    assert rows_of_last_layer(decoder, APART, prune=True) == 4 + 2
    assert rows_of_last_layer(decoder, torch.arange(PACKED.num_tokens), prune=True) == PACKED.num_tokens


def test_a_layer_that_mixes_tokens_outside_attention_is_not_pruned(qwen3_path: Path) -> None:
    decoder = decoder_at(qwen3_path)
    inputs = forward_inputs(PACKED, "segments", torch.float32)
    assert can_prune(decoder, inputs, TRAINED)
    decoder.layers[-1].mlp.register_forward_hook(lambda module, args, out: out - out.mean(1, keepdim=True))
    assert not can_prune(decoder, inputs, TRAINED)


def test_a_decoder_that_expects_the_whole_row_from_its_last_layer_is_not_pruned() -> None:
    config = GPT2Config(vocab_size=199, n_embd=32, n_layer=2, n_head=2, n_positions=128)
    decoder = GPT2LMHeadModel._from_config(config, attn_implementation="segments").get_decoder()
    assert not can_prune(decoder, forward_inputs(PACKED, "segments", torch.float32), TRAINED)


def test_recomputed_layers_are_not_pruned(qwen3_path: Path) -> None:
    """Transformers takes the cache away from a layer that it recomputes in the backward pass."""
    policy = Policy.load(qwen3_path, "cpu", gradient_checkpointing=True)
    assert not policy.prunes_last_layer
