"""Attention by segments against attention under the dense mask, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_models import packed_group

from tandem.rl.attention import dense_mask
from tandem.rl.packing import PackedSequence
from tandem.rl.segment_attention import CAUSAL_TOKENS, Block, block_table, restrict, segment_attention

HEAD_DIM = 8


def row(*segments: tuple[int, int]) -> PackedSequence:
    """Return a row of segments (tokens, parent); only its segments matter here."""
    lengths = torch.tensor([length for length, _ in segments])
    ids = torch.arange(len(segments)).repeat_interleave(lengths)
    parents = torch.tensor([parent for _, parent in segments]).repeat_interleave(lengths)
    zeros = torch.zeros(len(ids))
    return PackedSequence(ids, ids, ids, parents, zeros.bool(), zeros, zeros, zeros)


def blocks_of(table: torch.Tensor) -> list[Block]:
    return [Block(*bounds) for bounds in table[0, 0].tolist()]


def pairs(table: torch.Tensor, num_queries: int, num_keys: int) -> torch.Tensor:
    """Return how often each query meets each key."""
    seen = torch.zeros(num_queries, num_keys, dtype=torch.int64)
    for block in blocks_of(table):
        sizes = block.query_stop - block.query_start, block.key_stop - block.key_start
        met = torch.ones(sizes, dtype=torch.int64)
        seen[block.queries, block.keys] += met.tril() if block.is_causal else met
    return seen


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
    found = segment_attention(query, key, value, blocks_of(block_table(packed)), scale=0.3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    inputs = (query, key, value)
    for given in (grad, torch.ones(()).double().expand(grad.shape)):  # the second as in sum().backward()
        ours = torch.autograd.grad(found, inputs, given, retain_graph=True)
        for own, reference in zip(ours, torch.autograd.grad(expected, inputs, given, retain_graph=True), strict=True):
            torch.testing.assert_close(own, reference, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ROWS)
def test_blocks_cover_each_visible_pair_once_and_no_other(name: str) -> None:
    packed = ROWS[name]
    visible = dense_mask(packed.segment_ids, packed.parent_ids)[0, 0].long()
    assert torch.equal(pairs(block_table(packed), packed.num_tokens, packed.num_tokens), visible)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("seed", range(3))
def test_a_restricted_table_has_the_pairs_of_its_rows(name: str, seed: int) -> None:
    packed = ROWS[name]
    visible = dense_mask(packed.segment_ids, packed.parent_ids)[0, 0].long()
    chosen = torch.rand(packed.num_tokens // 3 + 1, generator=torch.Generator().manual_seed(seed)) < 0.6
    rows = chosen.repeat_interleave(3)[: packed.num_tokens].nonzero().squeeze(1)
    table = restrict(block_table(packed), rows) if len(rows) else torch.empty(1, 1, 0, 5)
    assert torch.equal(pairs(table, len(rows), packed.num_tokens), visible[rows])
    # A query's causal block comes before the others, which are merged into its result.
    order = [block.is_causal for block in blocks_of(table)]
    assert order == sorted(order, reverse=True)


def test_neighbours_on_one_prompt_share_a_block() -> None:
    full = [block for block in blocks_of(block_table(ROWS["a group"])) if not block.is_causal]
    assert full == [Block(5, 13, 0, 5, is_causal=0)]


def test_scores_that_differ_by_hundreds_do_not_overflow() -> None:
    packed = ROWS["a group"]
    query = torch.full((1, packed.num_tokens, HEAD_DIM), 30.0)
    key = torch.linspace(-30, 30, packed.num_tokens)[None, :, None].expand(1, -1, HEAD_DIM)
    value = torch.arange(float(packed.num_tokens))[None, :, None].expand(1, -1, HEAD_DIM)
    out = segment_attention(query, key, value, blocks_of(block_table(packed)), scale=1.0)[0, :, 0]
    # Each token attends to the latest visible one, itself: its score is the highest by far.
    torch.testing.assert_close(out, torch.arange(float(packed.num_tokens)))
