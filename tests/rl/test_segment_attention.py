"""Attention by segments against attention under the dense mask, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_models import packed_group

from tandem.rl.attention import dense_mask
from tandem.rl.packing import PackedSequence
from tandem.rl.segment_attention import CAUSAL_TOKENS, Block, block_table, segment_attention

HEAD_DIM = 8


def row(*segments: tuple[int, int]) -> PackedSequence:
    """Return a row of segments (tokens, parent); only its segments matter here."""
    lengths = torch.tensor([length for length, _ in segments])
    ids = torch.arange(len(segments)).repeat_interleave(lengths)
    parents = torch.tensor([parent for _, parent in segments]).repeat_interleave(lengths)
    zeros = torch.zeros(len(ids))
    return PackedSequence(ids, ids, ids, parents, zeros.bool(), zeros, zeros, zeros)


def blocks_of(packed: PackedSequence) -> list[Block]:
    return [Block(*bounds) for bounds in block_table(packed)[0, 0].tolist()]


ROWS = {
    "one segment": row((7, 0)),
    "one token": row((1, 0)),
    "a group": row((5, 0), (3, 0), (1, 0), (4, 0)),
    "two groups and a sequence alone": row((5, 0), (3, 0), (2, 0), (4, 3), (6, 4), (3, 4), (2, 4)),
    "completions of one prompt apart": row((4, 0), (3, 0), (5, 2), (2, 0), (2, 2)),
    "long segments": row((2 * CAUSAL_TOKENS + 3, 0), (CAUSAL_TOKENS + 1, 0), (40, 0)),
    "a packed group": packed_group(11, [9, 14, 7]),
}


@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (4, 4), (4, 1)], ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_output_and_gradients_are_those_under_the_dense_mask(name: str, heads: tuple[int, int]) -> None:
    packed = ROWS[name]
    generator = torch.Generator().manual_seed(len(name))

    def tensor(num_heads: int) -> torch.Tensor:
        made = torch.randn(packed.num_tokens, num_heads, HEAD_DIM, generator=generator, dtype=torch.float64)
        return made.transpose(0, 1).requires_grad_()

    query, key, value = tensor(heads[0]), tensor(heads[1]), tensor(heads[1])
    grad = tensor(heads[0]).detach()
    repeat = heads[0] // heads[1]
    mask = dense_mask(packed.segment_ids, packed.parent_ids)[0]
    expected = F.scaled_dot_product_attention(
        query, key.repeat_interleave(repeat, 0), value.repeat_interleave(repeat, 0), attn_mask=mask, scale=0.3
    )
    found = segment_attention(query, key, value, blocks_of(packed), scale=0.3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    inputs = (query, key, value)
    for given in (grad, torch.ones(()).double().expand(grad.shape)):  # the second as in sum().backward()
        ours = torch.autograd.grad(found, inputs, given, retain_graph=True)
        for own, reference in zip(ours, torch.autograd.grad(expected, inputs, given, retain_graph=True), strict=True):
            torch.testing.assert_close(own, reference, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ROWS)
def test_blocks_cover_each_visible_pair_once_and_no_other(name: str) -> None:
    packed = ROWS[name]
    seen = torch.zeros(packed.num_tokens, packed.num_tokens, dtype=torch.int64)
    for block in blocks_of(packed):
        pairs = torch.ones(block.query_stop - block.query_start, block.key_stop - block.key_start, dtype=torch.int64)
        seen[block.queries, block.keys] += pairs.tril() if block.is_causal else pairs
    assert torch.equal(seen, dense_mask(packed.segment_ids, packed.parent_ids)[0, 0].long())


def test_neighbours_on_one_prompt_share_a_block() -> None:
    full = [block for block in blocks_of(ROWS["a group"]) if not block.is_causal]
    assert full == [Block(5, 13, 0, 5)]


def test_scores_that_differ_by_hundreds_do_not_overflow() -> None:
    packed = ROWS["a group"]
    query = torch.full((1, packed.num_tokens, HEAD_DIM), 30.0)
    key = torch.linspace(-30, 30, packed.num_tokens)[None, :, None].expand(1, -1, HEAD_DIM)
    value = torch.arange(float(packed.num_tokens))[None, :, None].expand(1, -1, HEAD_DIM)
    out = segment_attention(query, key, value, blocks_of(packed), scale=1.0)[0, :, 0]
    # Each token attends to the latest visible one, itself: its score is the highest by far.
    torch.testing.assert_close(out, torch.arange(float(packed.num_tokens)))
