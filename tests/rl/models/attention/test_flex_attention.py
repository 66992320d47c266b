"""FlexAttention over packed rows: its block mask against torch's own, and its results against SDPA's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sympy
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import packed_group, save_model
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask
from torch.utils._sympy.functions import Mod
from transformers import AutoModelForCausalLM

from tandem.rl.models.attention import flex_attention
from tandem.rl.models.attention.masks import block_mask, dense_mask, forward_inputs, transformers_name, visibility
from tandem.rl.models.layers.any_length import compile_for_any_length
from tandem.rl.packed_rows import PackedSequence, one_segment, seen_until

BLOCK = 128


@st.composite
def forests(draw: st.DrawFn) -> PackedSequence:
    """Draw a row whose segments, of a token up to several blocks, leave their parents anywhere."""
    segments: list[int] = []
    parents: list[int] = []
    positions: list[int] = []
    path: list[tuple[int, int, int]] = []  # id, first position, and the least position at which a branch may leave
    for id_ in range(draw(st.integers(1, 8))):
        length = draw(st.sampled_from([1, 2, 30, 127, 128, 129, 300]))
        for _ in range(draw(st.integers(0, len(path)))):
            path.pop()
        start, parent = 0, id_
        if path:
            parent, first, last = path[-1]
            start = draw(st.integers(first, last))
            path[-1] = (parent, first, start)
        segments += [id_] * length
        parents += [parent] * length
        positions += range(start, start + length)
        path.append((id_, start, start + length))
    row = one_segment(torch.zeros(len(segments), dtype=torch.int64))
    ids = {"segment_ids": torch.tensor(segments), "parent_ids": torch.tensor(parents)}
    return PackedSequence(**{**vars(row), **ids, "positions": torch.tensor(positions)})


def tables(mask: BlockMask) -> list[torch.Tensor]:
    names = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
    return [getattr(mask, prefix) for prefix in names]


@settings(max_examples=60, deadline=None)
@given(forests(), st.sampled_from([1, 50, 128, 200, 300]))
def test_a_window_hides_what_is_too_far_by_position(row: PackedSequence, window: int) -> None:
    """Bounds may call a block partly visible that is full or empty, never the reverse."""
    padding = -row.num_tokens % BLOCK
    mask = block_mask(row, padding, window)
    dense = create_mask(mask.mask_mod, 1, 1, mask.shape[2], mask.shape[3], device="cpu")[0, 0]
    assert torch.equal(dense[: row.num_tokens, : row.num_tokens], dense_mask(row, window)[0, 0])
    assert not dense[row.num_tokens :, : row.num_tokens].any()
    by_block = dense.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    sees_some, sees_all = by_block.any(3).any(1), by_block.all(3).all(1)
    listed = torch.zeros_like(sees_some)
    for numbers, indices, is_full in ((*tables(mask)[:2], False), (*tables(mask)[2:], True)):
        for query, number in enumerate(numbers[0, 0].tolist()):
            keys = indices[0, 0, query, :number].long()
            assert not listed[query, keys].any()
            listed[query, keys] = True
            assert not is_full or sees_all[query, keys].all()
    assert (listed | ~sees_some).all()


def test_a_window_leaves_out_blocks() -> None:
    row = one_segment(torch.zeros(32 * BLOCK, dtype=torch.int64))
    partial, _, full, _ = tables(block_mask(row, window=4 * BLOCK))
    assert int(partial.sum()) == 32 + 28  # the diagonal, and the block at the far end of the window
    assert int(full.sum()) == 3 * 32 - (1 + 2 + 3)


@settings(max_examples=60, deadline=None)
@given(forests())
def test_the_block_mask_is_torchs_own(row: PackedSequence) -> None:
    """Torch asks the rule about every pair of tokens; here bounds of `seen_until` decide."""
    padding = -row.num_tokens % BLOCK
    total = row.num_tokens + padding
    rule = visibility(F.pad(seen_until(row), (0, padding), value=total))
    expected = create_block_mask(rule, 1, 1, total, total, device="cpu", BLOCK_SIZE=BLOCK)
    found = block_mask(row, padding)
    assert found.shape == expected.shape
    names = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
    names += ("q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices")
    for name in names:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    dense = create_mask(found.mask_mod, 1, 1, total, total, device="cpu")
    assert torch.equal(dense[:, :, : row.num_tokens, : row.num_tokens], dense_mask(row))
    assert not dense[:, :, row.num_tokens :, : row.num_tokens].any()
    assert not dense[:, :, : row.num_tokens, row.num_tokens :].any()


def test_the_block_mask_of_a_long_row_is_small() -> None:
    row = one_segment(torch.zeros(32_768, dtype=torch.int64))
    mask = block_mask(row)
    tables = [value for value in vars(mask).values() if isinstance(value, torch.Tensor)]
    assert sum(table.nbytes for table in tables) == 4 * (256 * 256 + 256) * 4
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_num_blocks.sum() == 256 * 255 // 2  # causal: all below the diagonal


@pytest.mark.parametrize("heads", [(4, 2), (7, 1), (10, 2)])
def test_it_computes_what_sdpa_computes(tmp_path: Path, heads: tuple[int, int]) -> None:
    """FlexAttention's forward pass runs on a CPU, so this compares the whole path, padding included."""
    path = save_model(tmp_path, num_attention_heads=heads[0], num_key_value_heads=heads[1])
    packed = packed_group(50, [60, 45, 70])
    hidden = {}
    for attention in ("sdpa", "flex_attention"):
        name = transformers_name(attention)
        model = AutoModelForCausalLM.from_pretrained(path, attn_implementation=name).get_decoder()
        inputs = forward_inputs(packed, attention, torch.float32)
        # Compiling the kernel for a CPU takes almost a minute; its eager form has the same mask and the same result.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            hidden[attention] = model(**inputs, use_cache=False)[0][0, : packed.num_tokens]
    assert inputs["input_ids"].shape == (1, 256)
    torch.testing.assert_close(hidden["flex_attention"], hidden["sdpa"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("window", [None, 40])
def test_caps_sinks_and_windows_are_applied(window: int | None, has_sinks: bool, softcap: float | None) -> None:
    packed = packed_group(50, [60, 45, 70])
    generator = torch.Generator().manual_seed(2)
    inputs = forward_inputs(packed, "flex_attention", torch.float32, {"sliding_attention": window})
    mask, padded = inputs["attention_mask"], inputs["input_ids"].shape[1]
    query, key, value = (torch.randn(1, heads, padded, 16, generator=generator) for heads in (6, 2, 2))
    sinks = torch.randn(6, generator=generator) if has_sinks else None
    with torch.no_grad():
        found = flex_attention.flex(query, key, value, mask, 0.5, sinks, softcap)[:, :, : packed.num_tokens]
    query, key, value = (tensor[:, :, : packed.num_tokens] for tensor in (query, key, value))
    scores = query @ key.repeat_interleave(3, 1).mT * 0.5
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    scores = scores.masked_fill(~dense_mask(packed, window), -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[None, :, None, None].expand(*scores.shape[:3], 1)], dim=-1)
    expected = scores.softmax(-1)[..., : packed.num_tokens] @ value.repeat_interleave(3, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_one_graph_computes_rows_of_every_length() -> None:
    """So a learner compiles when it starts, and never inside a job. The first row has as many blocks as heads."""
    before = counters["stats"]["unique_graphs"]
    flex = compile_for_any_length(flex_attention.flex, fullgraph=True, backend="aot_eager")
    generator = torch.Generator().manual_seed(0)
    for num_tokens in (768, 1, 513, 255, 300, 384, 128, 900):
        inputs = forward_inputs(
            one_segment(torch.zeros(num_tokens, dtype=torch.int64)), "flex_attention", torch.float32
        )
        mask, padded = inputs["attention_mask"], inputs["input_ids"].shape[1]
        assert padded >= max(num_tokens, 2 * BLOCK)
        assert padded % BLOCK == 0
        query, key, value = (torch.randn(1, heads, padded, 16, generator=generator) for heads in (6, 2, 2))
        with torch.no_grad():
            found = flex(query, key, value, mask, 0.25)
        dense = create_mask(mask.mask_mod, 1, 1, padded, padded, device="cpu")
        expected = F.scaled_dot_product_attention(query, key, value, dense, scale=0.25, enable_gqa=True)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == before + 1


def test_a_kernel_knows_that_rows_have_whole_blocks() -> None:
    """Inductor asks this when it makes a kernel. Without an answer the kernel checks the bounds of every block."""
    known = []

    def backend(graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., object]:
        for node in graph.graph.nodes:
            if node.op == "placeholder" and node.name in ("l_query_", "l_key_"):
                length = node.meta["example_value"].shape[-2]
                whole = sympy.Eq(Mod(length.node.expr, BLOCK), 0)
                known.append(length.node.shape_env._maybe_evaluate_static(whole))
        return graph.forward

    flex = torch.compile(flex_attention.flex, dynamic=True, fullgraph=True, backend=backend)
    inputs = forward_inputs(one_segment(torch.zeros(600, dtype=torch.int64)), "flex_attention", torch.float32)
    query, key = (torch.randn(1, heads, 640, 16) for heads in (6, 2))
    with torch.no_grad():
        flex(query, key, key, inputs["attention_mask"], 0.25)
    assert known[-2:] == [True, True]
    with pytest.raises(ValueError, match="whole blocks of 128"):
        flex_attention.flex(query[:, :, :600], key, key, inputs["attention_mask"], 0.25)
